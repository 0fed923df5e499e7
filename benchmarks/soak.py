"""Mixed traffic for long, and whether anything grows: python -m benchmarks.soak --minutes 20

Texts, pictures, searches, indexing and deleting, bad input, clients that vanish, and idle ones,
at a steady rate. Memory, open files and threads are sampled; what they grow by, as a straight
line says it, must stay within bounds. The first third does not count: it is the warming up.
Ends with 1 when a bound or an answer was not as it should be. --model shapes is the usual one.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.support.harness import (
    ROOT,
    Server,
    environment,
    parse,
    parser,
    photos,
    report,
    say,
    serving,
    table_of,
)
from benchmarks.support.load import KINDS, Connection, load, posted, prepared

PLOT: Final = ROOT / ".data" / "soak.svg"
GROWTH: Final = {"memory_mb": 25.0, "files": 4.0, "threads": 2.0}  # at most, in the whole window
_NAMES: Final = {"memory_mb": "memory, MB", "files": "open files", "threads": "threads"}
_CLIENTS: Final = 6
_CROWDS: Final = (4, 8, 16, 32, 64)  # clients at once, before
_PICTURES: Final = 100  # ids that are indexed again and again, each time with another picture
_COLUMNS: Final = {
    "figure": "",
    "first": "after the warm-up",
    "last": "at the end",
    "most": "most",
    "growth": "growth",
    "bound": "at most",
    "met": "met",
}


@dataclass(frozen=True)
class Sample:
    """What the service's processes hold together at a time, in seconds since the start."""

    at: float
    memory_mb: float
    files: int
    threads: int


def judge(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Say of each figure what it grew by after the first third, by least squares."""
    window = [sample for sample in samples if sample.at >= samples[-1].at / 3]
    at = np.array([sample.at for sample in window])
    rows = []
    for figure, bound in GROWTH.items():
        values = np.array([getattr(sample, figure) for sample in window], float)
        growth = float(np.polyfit(at, values, 1)[0] * (at[-1] - at[0]))
        rows.append(
            {
                "figure": _NAMES[figure],
                "first": float(values[0]),
                "last": float(values[-1]),
                "most": float(values.max()),
                "growth": growth,
                "bound": bound,
                "met": "yes" if growth <= bound else "no",
            }
        )
    return rows


def sample(server: Server, began: float) -> Sample:
    processes = [server.process, *server.process.children(recursive=True)]
    return Sample(
        time.monotonic() - began,
        server.memory_bytes() / 1e6,
        sum(process.num_fds() for process in processes),
        sum(process.num_threads() for process in processes),
    )


def mixture() -> list[tuple[bytes, frozenset[int]]]:
    """Return the requests to send in turn, each with the statuses that are right."""
    right, bad = frozenset({200}), frozenset({400, 415})
    pictures = [base64.b64encode(data).decode() for data in photos(16)]
    requests = [(request, right) for kind in ("text", "ukrainian") for request in prepared(kind)]
    requests += [(request, right) for request in prepared("image")]
    requests += [(request, right) for request in prepared("images")]
    for n in range(4 * _PICTURES):
        body = {"id": str(n % _PICTURES), "image_base64": pictures[(n + n // 100) % 16]}
        requests.append((posted("/images", body), right))
        requests.append((posted("/search", {"text": f"a picture {n % 7}", "top_k": 10}), right))
        requests.append((posted("/search", {"image": {"image_base64": pictures[n % 16]}}), right))
        gone = f"DELETE /images/{n % 10} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        requests.append((gone.encode(), right))
        requests.append((posted("/embed/image", {"image_base64": pictures[0][:400]}), bad))
        requests.append((posted("/embed/text", {"text": ""}), bad))
        requests.append((posted("/embed/text", {"text": f"number {n} " * 20}), right))
    order = np.random.default_rng(0).permutation(len(requests))
    return [requests[i] for i in order]


class Traffic:
    """Clients that send the mixture at a rate, and some that vanish or say nothing."""

    def __init__(self, port: int, rate: float) -> None:
        self._port = port
        self._pause = _CLIENTS / rate
        self._requests = itertools.cycle(mixture())
        self.statuses = Counter[int]()
        self.wrong = Counter[str]()

    async def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._client(end) for _ in range(_CLIENTS)), self._others(end))

    async def _client(self, end: float) -> None:
        connection, due = Connection(self._port), time.monotonic()
        while due < end:
            await asyncio.sleep(due - time.monotonic())
            request, right = next(self._requests)
            status = await connection.ask(request)
            self.statuses[status] += 1
            if status not in right:
                self.wrong[f"{status} {request.split()[1].decode()}"] += 1
            due = max(due + self._pause, time.monotonic() - 1)  # no storm after a slow answer
        connection.close()

    async def _others(self, end: float) -> None:
        """Be a client that goes in the middle of its upload, and one that never asks."""
        upload = prepared("image")[0]
        while time.monotonic() < end:
            writers = []
            for part in (upload[: len(upload) // 2], upload, b"", b"POST /embed"):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(part)
                writers.append(writer)
            await asyncio.sleep(1)
            for writer in writers:
                writer.transport.abort()


async def soak(server: Server, seconds: float, rate: float) -> tuple[list[Sample], Traffic]:
    traffic, began, samples = Traffic(server.port, rate), time.monotonic(), [sample(server, 0.0)]
    samples[0] = sample(server, began)
    task = asyncio.create_task(traffic.run(seconds))
    while not task.done():
        await asyncio.wait([task], timeout=max(0.5, seconds / 400))
        samples.append(await asyncio.to_thread(sample, server, began))
    task.result()
    return samples, traffic


def plot(samples: Sequence[Sample]) -> str:
    """Draw each figure over time, as an SVG."""
    width, height, parts = 640, 120, []
    for row, (figure, name) in enumerate(_NAMES.items()):
        values = [getattr(sample, figure) for sample in samples]
        top, bottom = max(values) * 1.05, min(values) * 0.95
        points = " ".join(
            f"{60 + 560 * sample.at / samples[-1].at:.1f},"
            f"{row * height + 105 - 80 * (value - bottom) / (top - bottom):.1f}"
            for sample, value in zip(samples, values, strict=True)
        )
        parts.append(
            f'<text x="60" y="{row * height + 16}">{name}: {min(values):,.0f} to '
            f"{max(values):,.0f} in {samples[-1].at / 60:.0f} min</text>"
            f'<polyline points="{points}" fill="none" stroke="#2563eb" stroke-width="1.5"/>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {3 * height}" '
        f'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(parts)}</svg>\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--minutes", type=float, default=20.0, help="how long (default: 20)")
    made.add_argument("--rate", type=float, default=20.0, help="requests a second (default: 20)")
    made.add_argument("--plot", type=Path, default=PLOT, help="where to draw it, as SVG")
    options = parse(made, argv)
    seconds = 20.0 if options.quick else 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        variables = {
            "QDRANT_ENABLED": "true",
            "QDRANT_PATH": f"{folder}/qdrant",
            "THUMBNAILS_PATH": f"{folder}/thumbnails",
            **environment(options),
        }
        with serving("service:VisionEncoder", **variables) as server:
            say("crowds first, for all batch sizes: each keeps some memory from then on")
            brief = 0.5 if options.quick else 2.0
            for kind in KINDS:
                for clients in _CROWDS:
                    load(server.port, kind, clients=clients, seconds=brief, busy_allowed=True)
            say(f"mixed traffic, {options.rate:g} requests a second for {seconds:g} s")
            samples, traffic = asyncio.run(soak(server, seconds, options.rate))
    rows = judge(samples)
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    options.plot.write_text(plot(samples))
    say(f"drawn in {options.plot}")
    statuses = {str(status): count for status, count in sorted(traffic.statuses.items())}
    shown = table_of(_COLUMNS, rows) + f"\nanswers: {statuses}; wrong: {dict(traffic.wrong)}\n"
    results = {
        "growth": rows,
        "statuses": statuses,
        "wrong": traffic.wrong,
        "samples": [asdict(one) for one in samples[:: max(1, len(samples) // 40)]],
    }
    report("soak", options, shown, results)
    if traffic.wrong or any(row["met"] == "no" for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
