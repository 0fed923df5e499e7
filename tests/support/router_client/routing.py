"""Run the reference router as a process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.support.paths import ROOT
from tests.support.serving import free_port


@contextmanager
def routing(encoder_url: str, *options: str, **variables: str) -> Iterator[str]:
    """Run `python -m router_client` until the block ends, and yield its URL."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "router_client", "--port", str(port), *options],
        cwd=ROOT,
        env={"VISION_ENCODER_URL": encoder_url, "VISION_ENCODER_TIMEOUT": "30", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert "Traceback" not in output
