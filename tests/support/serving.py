"""Run the service as users do, with `bentoml serve` in another process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.paths import BUNDLED, ROOT


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass(frozen=True)
class Server:
    """A running service: its URL, its process and its log file."""

    url: str
    pid: int
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)


@contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Server]:
    """Run `bentoml serve` in another process until the block ends."""
    port = free_port()
    log = folder / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", "service:VisionEncoder"],
            cwd=ROOT,
            env={
                **os.environ,
                "BENTOML_DO_NOT_TRACK": "True",
                "MODEL_NAME": BUNDLED,
                "DEVICE": "cpu",
                "DTYPE": "float32",
                "PORT": str(port),
                "API_KEY": "",
                "QDRANT_ENABLED": "true",
                "QDRANT_PATH": str(folder / "qdrant"),
                "THUMBNAILS_PATH": str(folder / "thumbnails"),
                "FILES_PATHS": str(folder / "files"),
                **environment,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, log)
        yield Server(url, process.pid, log)
    finally:
        process.terminate()
        process.wait(30)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not ready within 120 s: {log.read_text()}")


def logged(server: Server, **wanted: str) -> dict[str, Any]:
    """Wait for the log line with these fields, and return it. It must be the only one."""
    deadline = time.monotonic() + 10
    found: list[dict[str, Any]] = []
    while not found and time.monotonic() < deadline:
        complete = server.log.read_text().rpartition("\n")[0].splitlines()
        lines = [json.loads(line) for line in complete if line.startswith("{")]
        found = [line for line in lines if wanted.items() <= line.items()]
        time.sleep(0.05)
    (line,) = found
    return line
