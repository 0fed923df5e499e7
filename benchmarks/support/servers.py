"""Start a server, send it requests, read its CPU time and memory, stop it."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

from benchmarks.support.inputs import ROOT

_START_SECONDS: Final = 180.0
_STOP_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Server:
    """A running service and its process tree."""

    port: int
    process: psutil.Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON answer of a route. Raises `RuntimeError` unless it is 200."""
        status, body = _get(self.port, path)
        if status != 200:
            raise RuntimeError(f"GET {path} answered {status}: {body[:200]!r}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def cpu_seconds(self) -> float:
        """Return the CPU time of the process tree in seconds."""
        return self._sum(lambda process: sum(process.cpu_times()[:2]))

    def memory_bytes(self) -> int:
        """Return the memory of the process tree without shared mappings.

        Other processes may map the same files, for example torch's libraries.
        """
        return int(self._sum(_memory))

    @contextmanager
    def memory_samples(self) -> Iterator[list[int]]:
        """Sample the memory in bytes every 0.1 s while the block runs."""
        samples = [self.memory_bytes()]
        stop = threading.Event()

        def sample() -> None:
            while not stop.wait(0.1):
                samples.append(self.memory_bytes())

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield samples
        finally:
            stop.set()
            thread.join()

    def _sum(self, figure: Callable[[psutil.Process], float]) -> float:
        total = 0.0
        for process in (self.process, *self.process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += figure(process)
        return total


def _memory(process: psutil.Process) -> float:
    info = process.memory_info()
    return float(info.rss - getattr(info, "shared", 0))


@contextmanager
def serving(target: str, **environment: str) -> Iterator[Server]:
    """Run `bentoml serve` in a process of its own until the block ends."""
    argv = [sys.executable, "-m", "bentoml", "serve", target]
    with running(argv, free_port(), "/readyz", **environment) as server:
        yield server


@contextmanager
def running(
    argv: Sequence[str], port: int, ready_path: str, **environment: str
) -> Iterator[Server]:
    """Run a service on `port`; enter the block when `ready_path` answers 200.

    Raises `RuntimeError` with the end of its log if it did not start, or ended early.
    """
    defaults = {"BENTOML_DO_NOT_TRACK": "True", "QDRANT_ENABLED": "false", "PORT": str(port)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**os.environ, **defaults, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        server = Server(port, psutil.Process(process.pid))
        try:
            if ready := wait_for(server, ready_path):
                yield server
            if not ready or process.poll() is not None:
                log.seek(0)
                tail = log.read().decode(errors="replace")[-3000:]
                raise RuntimeError(f"{shlex.join(argv)} did not start or ended early:\n{tail}")
        finally:
            _stop(server, process)


def wait_for(server: Server, path: str) -> bool:
    """Wait until a route answers 200. Return False if the process ended or took over 180 s."""
    deadline = time.monotonic() + _START_SECONDS
    while server.process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        with suppress(OSError, http.client.HTTPException):
            if _get(server.port, path)[0] == 200:
                return True
        time.sleep(0.05)
    return False


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _stop(server: Server, process: subprocess.Popen[bytes]) -> None:
    tree: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):  # it has ended already
        tree = server.process.children(recursive=True)
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(tree, timeout=5)[1]:
        child.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
