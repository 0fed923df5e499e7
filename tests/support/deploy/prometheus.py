"""Run the monitoring of deploy/monitoring with Prometheus' own programs."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.paths import ROOT
from tests.support.serving import free_port

MONITORING = ROOT / "deploy" / "monitoring"
CONFIG = MONITORING / "prometheus" / "prometheus.yml"
ALERTS = MONITORING / "prometheus" / "alerts.yml"


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool, which tests with Prometheus need."""
    if not shutil.which("promtool"):
        pytest.skip("Prometheus is not installed")
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


class Prometheus:
    """A running Prometheus server."""

    def __init__(self, url: str, log: Path) -> None:
        self._url = url
        self._log = log

    def get(self, path: str, **query: str) -> Any:
        """Return the data of an answer of its API."""
        answer = httpx.get(f"{self._url}/api/v1/{path}", params=query, timeout=10).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        """Return the series of an expression, each with its last value."""
        found: list[Any] = self.get("query", query=expression)["result"]
        return found

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self._url}/-/ready", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.2)


@contextmanager
def prometheus(folder: Path, service: str, key: str) -> Iterator[Prometheus]:
    """Run Prometheus with our configuration, which scrapes `service` every second with a key."""
    if not shutil.which("prometheus"):
        pytest.skip("Prometheus is not installed")
    (folder / "key").write_text(key)
    text = CONFIG.read_text()
    for ours, theirs in (
        ("15s", "1s"),
        ("vision-encoder:8001", urlsplit(service).netloc),
        ("/tmp/api-key", str(folder / "key")),
        ("alerts.yml", str(ALERTS)),
    ):
        assert ours in text
        text = text.replace(ours, theirs)
    config, log, port = folder / "prometheus.yml", folder / "prometheus.log", free_port()
    config.write_text(text)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        running = Prometheus(f"http://127.0.0.1:{port}", log)
        running.wait_for(running.is_ready)
        yield running
    finally:
        process.terminate()
        process.wait(30)
