"""Compare our queue with BentoML's `batchable=True`: python -m benchmarks.batching

One client, then 32 at once, then one again, on text embeddings of the bundled model. Clients and
service share the machine: trust the ratios.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import httpx

_ROOT: Final = Path(__file__).resolve().parents[1]
_PORT: Final = 8055
_SECONDS: Final = 10.0
_PHASES: Final = (1, 32, 1)
_SERVICES: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "in-process queue": ("service:VisionEncoder", "/embed/text", {"text": "a large red circle"}),
    "batchable=True": (
        "benchmarks.batchable:Batchable",
        "/embed",
        {"texts": ["a large red circle"]},
    ),
}


async def load(route: str, body: dict[str, Any], clients: int) -> tuple[float, float, int]:
    """Ask for `_SECONDS`; return requests per second, p50 in ms, and failures."""
    latencies: list[float] = []
    failures = 0
    stop = time.perf_counter() + _SECONDS

    async def client() -> None:
        nonlocal failures
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{_PORT}", timeout=60) as http:
            while time.perf_counter() < stop:
                started = time.perf_counter()
                response = await http.post(route, json=body)
                latencies.append((time.perf_counter() - started) * 1000)
                failures += response.status_code != 200

    await asyncio.gather(*(client() for _ in range(clients)))
    return len(latencies) / _SECONDS, sorted(latencies)[len(latencies) // 2], failures


def measure(target: str, route: str, body: dict[str, Any]) -> list[tuple[float, float, int]]:
    """Serve one of the services and load it, phase by phase."""
    environment = {
        **os.environ,
        "MODEL_NAME": f"local-dir:{_ROOT / 'models' / 'shapes'}",
        "DEVICE": "cpu",
        "PORT": str(_PORT),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    service = subprocess.Popen(
        [sys.executable, "-m", "bentoml", "serve", target],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_ready(service)
        return [asyncio.run(load(route, body, clients)) for clients in _PHASES]
    finally:
        service.terminate()
        service.wait(60)


def _wait_until_ready(service: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while service.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{_PORT}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit("the service did not start")


def main() -> None:
    print("| | " + " | ".join(f"{n} client{'s' * (n > 1)}" for n in _PHASES) + " |")
    print("|---" * (len(_PHASES) + 1) + "|")
    for name, (target, route, body) in _SERVICES.items():
        cells = []
        for rate, p50, failures in measure(target, route, body):
            failed = f", {failures} failed" if failures else ""
            cells.append(f"{rate:.0f} requests/s, p50 {p50:.1f} ms{failed}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
