"""Run a load test against a service and print a pass or fail verdict.

Without --host, the test starts its own service and agent router, with an empty index and the model
MODEL_NAME (default: the bundled model). With --host, it tests that deployment and indexes 500
images in its collection `loadtest`. Other options are passed to locust:

  --shape steady|ramp|spike|soak|mixed   --seconds 60   --rate N   --weights text=4,image=2
  --processes 4 (load generators)        --master --expect-workers 4

The exit status is 0 if the service meets every objective of the profile, otherwise 1.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.progress import Progress

from loadtests.launch import (
    ROOT,
    NotStarted,
    checkout_in,
    console,
    model,
    start_router,
    start_service,
)
from loadtests.objectives import profiles
from loadtests.options import add_options, check_profile, weights_of
from loadtests.traffic.deployment import Deployment, Unusable
from loadtests.traffic.inputs import INDEXED


def main(argv: Sequence[str] | None = None) -> int:
    """Run a load test and return the exit status."""
    options, rest = _parser().parse_known_args(argv)
    _check(options, rest)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    try:
        with ExitStack() as stack:
            arguments = ["--slo-profile", options.slo_profile, "--reports", str(options.reports)]
            host, router = options.host, options.router
            if not host:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                arguments += ["--expected", str(_reference(folder))]
                checkout = checkout_in(folder)
                host, fact = stack.enter_context(start_service(checkout, folder, options.reports))
                router = stack.enter_context(start_router(checkout, host, options.reports))
                arguments += ["--fact", fact]
            with Deployment(host) as deployment:
                if deployment.info()["qdrant_enabled"]:
                    _index(deployment)
            return _locust(["--host", host, "--router", router, *arguments, *rest])
    except (Unusable, NotStarted) as error:
        print(f"FAIL: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped before a verdict", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests",
        description=__doc__,
        epilog="All options of locust: python -m locust -f loadtests/locustfile.py --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--host", type=_url, default="", help="address of the deployment (https://…)"
    )
    parser.add_argument(
        "--router", type=_url, default="", help="address of its agent router, if it has one"
    )
    parser.add_argument(
        "--slo-profile",
        choices=list(profiles()),
        default="ci",
        help="the objectives, from loadtests/slo.yaml (default: ci)",
    )
    parser.add_argument(
        "--reports",
        type=Path,
        default=ROOT / "loadtests" / "reports",
        help="folder for the reports (default: loadtests/reports)",
    )
    return parser


def _check(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Raise `SystemExit` for invalid options now; locust would do so only after a slow start."""
    parser = argparse.ArgumentParser("python -m loadtests", add_help=False, allow_abbrev=False)
    add_options(parser)
    asked = parser.parse_known_args(rest, argparse.Namespace(**vars(options)))[0]
    check_profile(options.slo_profile, measured=not options.host)
    weights_of(asked, router=bool(options.router or not options.host))
    try:
        options.reports.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.reports).close()
    except OSError as error:
        raise SystemExit(
            f"cannot write to the reports' folder: {error}; choose another with --reports"
        ) from None


def _url(text: str) -> str:
    if text and not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a URL that starts with http:// or https://"
        )
    return text.rstrip("/")


def _reference(folder: Path) -> Path:
    """Return a file with the embeddings of OpenCLIP alone and its times on this machine."""
    file = folder / "expected.npz"
    with console.status("measuring this machine with OpenCLIP alone"):
        command = [sys.executable, "-m", "loadtests.traffic.reference", str(file)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **model()}, check=True)
    return file


def _index(deployment: Deployment) -> None:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("indexing images", total=INDEXED)
        deployment.index(lambda: progress.advance(task))


def _locust(arguments: list[str]) -> int:
    command = [
        *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "locustfile.py")),
        *("--headless", "--only-summary", "--loglevel", "WARNING", "--stop-timeout", "20"),
        *arguments,
    ]
    with subprocess.Popen(command, cwd=ROOT) as locust:
        try:
            return locust.wait()
        except KeyboardInterrupt:
            locust.wait()  # locust got the signal, too, and still writes its report
            raise


if __name__ == "__main__":
    sys.exit(main())
