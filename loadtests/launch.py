"""Start the service and the agent router for a load test, and stop them completely."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
import psutil  # type: ignore[import-untyped]
from rich.console import Console

ROOT: Final = Path(__file__).resolve().parents[1]
console: Final = Console(stderr=True)

_BUNDLED: Final = f"local-dir:{ROOT / 'models' / 'shapes'}"
_START_SECONDS: Final = 300.0  # for the service or the router to become ready
_STOP_SECONDS: Final = 70.0  # for a graceful shutdown


class NotStarted(Exception):
    """The service or the router did not start."""


def model() -> dict[str, str]:
    """Return the variables of the model to test, without the prefix VISION_."""
    name = os.environ.get("MODEL_NAME") or os.environ.get("VISION_MODEL_NAME") or _BUNDLED
    tag = os.environ.get("MODEL_PRETRAINED") or os.environ.get("VISION_MODEL_PRETRAINED")
    return {"MODEL_NAME": name, "MODEL_PRETRAINED": tag or "openai"}


def checkout_in(folder: Path, root: Path = ROOT) -> Path:
    """Link this checkout into a new folder without `.env`, which configures another service."""
    checkout = folder / "checkout"
    checkout.mkdir()
    for entry in root.iterdir():
        if entry.name != ".env":
            (checkout / entry.name).symlink_to(entry)
    return checkout


@contextmanager
def start_service(checkout: Path, folder: Path, logs: Path) -> Iterator[tuple[str, str]]:
    """Serve the model until the block ends. Yield the address and a fact for the report."""
    variables = {
        **model(),
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
    with running("service", command, "/readyz", checkout, logs, variables) as (url, process):
        took = time.monotonic() - began
        tree = (process, *process.children(recursive=True))
        memory = sum(one.memory_info().rss for one in tree) / 1e9
        yield url, f"started=ready after {took:.1f} s, {memory:.1f} GB resident"


@contextmanager
def start_router(checkout: Path, host: str, logs: Path) -> Iterator[str]:
    variables = {"VISION_ENCODER_URL": host}
    command = ["-m", "router_client"]
    with running("router", command, "/health", checkout, logs, variables) as (url, _):
        yield url


@contextmanager
def running(
    name: str,
    command: list[str],
    ready: str,
    checkout: Path,
    logs: Path,
    variables: dict[str, str],
) -> Iterator[tuple[str, psutil.Process]]:
    """Run a command until the block ends. Yield its URL once the route `ready` answers."""
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
            start_new_session=True,  # Ctrl-C must reach only this process, which then stops it
        )
    children: set[psutil.Process] = set()
    try:
        with console.status(f"starting the {name}"):
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
    if process.poll() is None:
        problem = f"the {name} was not ready within {_START_SECONDS:g} s"
    else:
        problem = f"the {name} ended with status {process.returncode} before it was ready"
    raise NotStarted(f"{problem}; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")


def _stop(process: subprocess.Popen[bytes], children: set[psutil.Process]) -> None:
    """Stop a process and its descendants. `children` are killed even if the process has died."""
    if process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            children.update(psutil.Process(process.pid).children(recursive=True))
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    for child in children:  # each worker of BentoML runs in its own session
        with suppress(psutil.NoSuchProcess):
            child.kill()
    with suppress(ProcessLookupError):  # workers of the same session that outlived the process
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
