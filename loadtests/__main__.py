"""Run a load test: start what is to be tested, index, put it under load, report, stop everything.

Without --host the service is started here, with MODEL_NAME (the bundled model unless it is set), an
empty index and the agent router. With --host, a deployment is tested as it is: 500 pictures are
indexed in its collection `loadtest`. Other options go to locust:

  --shape steady|ramp|spike|soak|mixed   --seconds 60   --rate N   --weights text=4,image=2
  --processes 4 (of the generator)       --master --expect-workers 4

Ends with 0 when every objective of the profile was kept, with 1 when not.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
import psutil  # type: ignore[import-untyped]
from rich.console import Console
from rich.progress import Progress

from loadtests.objectives import profiles
from loadtests.options import add_options, check_profile, weights_of
from loadtests.traffic.deployment import Deployment, Unusable
from loadtests.traffic.inputs import INDEXED

_ROOT: Final = Path(__file__).resolve().parents[1]
_BUNDLED: Final = f"local-dir:{_ROOT / 'models' / 'shapes'}"
_START_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 70.0

_console = Console(stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; return the exit status."""
    options, rest = _parser().parse_known_args(argv)
    _check(options, rest)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped alike, nothing left behind
    try:
        with ExitStack() as stack:
            arguments = ["--slo-profile", options.slo_profile, "--reports", str(options.reports)]
            host, router = options.host, options.router
            if not host:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                arguments += ["--expected", str(_reference(folder))]
                checkout = _checkout(folder)
                host, fact = stack.enter_context(_service(checkout, folder, options.reports))
                router = stack.enter_context(_router(checkout, host, options.reports))
                arguments += ["--fact", fact]
            with Deployment(host) as deployment:
                if deployment.info()["qdrant_enabled"]:
                    _index(deployment)
            return _locust(["--host", host, "--router", router, *arguments, *rest])
    except (Unusable, _NotStarted) as error:
        print(f"FAIL: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 1


class _NotStarted(Exception):
    """Something that is to be tested did not start."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests",
        description=__doc__,
        epilog="all of locust's: python -m locust -f loadtests/locustfile.py --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--host", type=_url, default="", help="the deployment (https://…)")
    parser.add_argument("--router", type=_url, default="", help="its agent router, if there is one")
    parser.add_argument("--slo-profile", choices=list(profiles()), default="ci", help="default: ci")
    parser.add_argument(
        "--reports", type=Path, default=_ROOT / "loadtests" / "reports", help="the reports' folder"
    )
    return parser


def _check(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Raise `SystemExit` now for what locust would refuse after everything has been started."""
    parser = argparse.ArgumentParser("python -m loadtests", add_help=False, allow_abbrev=False)
    add_options(parser)
    asked = parser.parse_known_args(rest, argparse.Namespace(**vars(options)))[0]
    check_profile(options.slo_profile, measured=not options.host)
    weights_of(asked, router=bool(options.router or not options.host))
    try:
        options.reports.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.reports).close()
    except OSError as error:
        raise SystemExit(f"reports cannot be written: {error}") from None


def _url(text: str) -> str:
    if text and not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with http:// or https://")
    return text.rstrip("/")


def _reference(folder: Path) -> Path:
    """Embed the inputs by OpenCLIP alone, and measure what that takes."""
    file = folder / "expected.npz"
    with _console.status("measuring this machine: OpenCLIP alone"):
        command = [sys.executable, "-m", "loadtests.traffic.reference", str(file)]
        subprocess.run(command, cwd=_ROOT, env={**os.environ, **_model()}, check=True)
    return file


def _model() -> dict[str, str]:
    name = os.environ.get("MODEL_NAME") or os.environ.get("VISION_MODEL_NAME") or _BUNDLED
    tag = os.environ.get("MODEL_PRETRAINED") or os.environ.get("VISION_MODEL_PRETRAINED")
    return {"MODEL_NAME": name, "MODEL_PRETRAINED": tag or "openai"}


def _checkout(folder: Path) -> Path:
    """Return a folder with what this checkout has but `.env`, which is for another service."""
    checkout = folder / "checkout"
    checkout.mkdir()
    for entry in _ROOT.iterdir():
        if entry.name != ".env":
            (checkout / entry.name).symlink_to(entry)
    return checkout


@contextmanager
def _service(checkout: Path, folder: Path, logs: Path) -> Iterator[tuple[str, str]]:
    """Serve the model until the block ends; yield its address, and how it started."""
    variables = {
        **_model(),
        "VISION_MODEL_NAME": "",
        "VISION_MODEL_PRETRAINED": "",
        "HOST": "127.0.0.1",
        "QDRANT_ENABLED": "true",
        "QDRANT_HOST": "",
        "QDRANT_PATH": str(folder / "qdrant"),
        "THUMBNAILS_PATH": str(folder / "thumbnails"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    began = time.monotonic()
    command = ["-m", "bentoml", "serve", "service:VisionEncoder", "--working-dir", str(checkout)]
    with _running("service", command, "/readyz", checkout, logs, variables) as (url, process):
        took = time.monotonic() - began
        tree = (process, *process.children(recursive=True))
        memory = sum(one.memory_info().rss for one in tree) / 1e9
        yield url, f"started=ready after {took:.1f} s, {memory:.1f} GB resident"


@contextmanager
def _router(checkout: Path, host: str, logs: Path) -> Iterator[str]:
    variables = {"VISION_ENCODER_URL": host}
    command = ["-m", "router_client"]
    with _running("router", command, "/health", checkout, logs, variables) as (url, _):
        yield url


@contextmanager
def _running(
    name: str,
    command: list[str],
    ready: str,
    checkout: Path,
    logs: Path,
    variables: dict[str, str],
) -> Iterator[tuple[str, psutil.Process]]:
    """Run something on a port of its own, from when `ready` answers until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", logs / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command, "--port", str(port)],
            cwd=checkout,
            env={**os.environ, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process, which stops it
        )
    children: set[psutil.Process] = set()
    try:
        with _console.status(f"starting the {name}"):
            _wait(process, url + ready, name, log)
        started = psutil.Process(process.pid)
        children.update(started.children(recursive=True))
        yield url, started
    finally:
        _stop(process, children)


def _wait(process: subprocess.Popen[bytes], url: str, name: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    said = log.read_text(errors="replace")[-2000:]
    raise _NotStarted(f"the {name} did not start within {_START_SECONDS:g} s, or ended:\n{said}")


def _stop(process: subprocess.Popen[bytes], children: set[psutil.Process]) -> None:
    """Stop a process and whatever it started: `children` also where it is not there to do so."""
    if process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            children.update(psutil.Process(process.pid).children(recursive=True))
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    for child in children:  # a worker of BentoML has a session of its own
        with suppress(psutil.NoSuchProcess):
            child.kill()
    with suppress(ProcessLookupError):  # its session: a worker that outlived it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _index(deployment: Deployment) -> None:
    with Progress(console=_console, transient=True) as progress:
        task = progress.add_task("indexing pictures", total=INDEXED)
        deployment.index(lambda: progress.advance(task))


def _locust(arguments: list[str]) -> int:
    command = [
        *(sys.executable, "-m", "locust", "-f", str(_ROOT / "loadtests" / "locustfile.py")),
        *("--headless", "--only-summary", "--loglevel", "WARNING", "--stop-timeout", "20"),
        *arguments,
    ]
    with subprocess.Popen(command, cwd=_ROOT) as locust:
        try:
            return locust.wait()
        except KeyboardInterrupt:
            locust.wait()  # it has had the signal too, and writes its report
            raise


if __name__ == "__main__":
    sys.exit(main())
