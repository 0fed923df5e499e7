"""`python -m router_client`: the reference router."""

from __future__ import annotations

import argparse
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

from pydantic import ValidationError

from bento.contract.errors import VisionEncoderError, describe
from router_client.router.providers import build_provider_registry
from router_client.router.rules import RULES_FILE, RulesError, load_rules

EPILOG = """\
POST /route      {"mode": "image_search", "message": "a red circle", "dao_id": "my-dao"}
GET  /health     whether the router runs
GET  /providers  the providers with their rules, and whether the vision encoder answers

VISION_ENCODER_URL (http://127.0.0.1:8001) is the address of the vision encoder. The router needs
no key and reads the files that payload.image_path names: let only your agents reach it.
"""


def main(arguments: list[str] | None = None) -> int:
    """Serve until stopped; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m router_client",
        description="A small agent router in front of the vision encoder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=_port, default=9102, help="port to listen on (%(default)s)")
    parser.add_argument(
        "--config",
        type=Path,
        default=RULES_FILE,
        metavar="FILE",
        help="YAML file of the rules (router_client/router/router-config.yml)",
    )
    options = parser.parse_args(arguments)
    if not all(find_spec(name) for name in ("starlette", "uvicorn")):
        return _fail("the router needs a web server: pip install 'vision-encoder[router]'")
    try:
        providers = build_provider_registry()
        rules = load_rules(options.config, providers)
    except (RulesError, VisionEncoderError) as error:
        return _fail(str(error))
    except ValidationError as error:
        return _fail(f"a variable is not valid: {describe(error)}")

    import uvicorn

    from router_client.router.app import create_router

    # uvicorn shuts down gracefully and then raises the signal again
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        create_router(rules, providers),
        host=options.host,
        port=options.port,
        access_log=False,
        timeout_graceful_shutdown=30,
    )
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return int(text)


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
