"""Start the reference router: `python -m router_client`."""

from __future__ import annotations

import argparse
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

from pydantic import ValidationError

from bento.contract.errors import VisionEncoderError, describe
from router_client.client.settings import ClientSettings
from router_client.router.providers import build_provider_registry
from router_client.router.rules import RULES_FILE, RulesError, load_rules

EPILOG = """\
POST /route      {"mode": "image_search", "message": "a red circle", "dao_id": "my-dao"}
GET  /health     answers 200 while the router runs
GET  /providers  lists the providers with their rules and the health of the vision encoder

VISION_ENCODER_URL is the address of the vision encoder (default: http://127.0.0.1:8001).
ROUTER_API_KEY is the key that callers must send as a bearer token (default: none is required). The
router reads any file that payload.image_path names. Make sure that only your agents can reach it.
"""


def main(arguments: list[str] | None = None) -> int:
    """Serve until the process is stopped, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m router_client",
        description="A small agent router in front of the vision encoder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=_port, default=9102, help="port to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=RULES_FILE,
        metavar="FILE",
        help="YAML file with the routing rules (default: router_client/router/router-config.yml)",
    )
    options = parser.parse_args(arguments)
    if not all(find_spec(name) for name in ("httptools", "starlette", "uvicorn")):
        return _fail(
            "starlette and uvicorn are not installed: pip install 'vision-encoder[router]'"
        )
    try:
        providers = build_provider_registry()
        key = ClientSettings().router_api_key
        rules = load_rules(options.config, providers)
    except (RulesError, VisionEncoderError) as error:
        return _fail(str(error))
    except ValidationError as error:
        return _fail(f"invalid environment variable: {describe(error)}")

    import uvicorn

    from router_client.router.app import create_router
    from router_client.router.connection import RouterConnection

    # After its graceful shutdown uvicorn raises SIGTERM again. Exit with 0 then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        create_router(rules, providers, key.get_secret_value() if key else ""),
        host=options.host,
        port=options.port,
        access_log=False,
        http=RouterConnection,
        timeout_graceful_shutdown=30,
    )
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number from 1 to 65535")
    return int(text)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
