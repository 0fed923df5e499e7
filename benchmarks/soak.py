"""Check that nothing grows under long mixed traffic.

    python -m benchmarks.soak --model shapes --minutes 20

The traffic is texts, pictures, searches, indexing, deleting and bad input at a steady rate, besides
clients that vanish or stay silent. Meanwhile the service's memory, open files and threads are
sampled. The growth of each, by a straight-line fit, must stay within its bound; the first third is
warm-up. The exit status is 1 if a bound was exceeded or an answer was wrong.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.support.command import environment, parse, parser, report, say
from benchmarks.support.inputs import ROOT
from benchmarks.support.load import KINDS, Loaded, load
from benchmarks.support.record import table_of
from benchmarks.support.servers import Server, serving

PLOT: Final = ROOT / ".data" / "soak.svg"
GROWTH: Final = {"memory_mb": 25.0, "files": 4.0, "threads": 2.0}  # bounds over the whole window
_NAMES: Final = {"memory_mb": "memory, MB", "files": "open files", "threads": "threads"}
_CROWDS: Final = (4, 8, 16, 32, 64)  # clients of the loads before the traffic
_COLUMNS: Final = {
    "figure": "of all processes",
    "first": "after the warm-up",
    "last": "at the end",
    "most": "most",
    "growth": "growth",
    "bound": "at most",
    "met": "met",
}


@dataclass(frozen=True)
class Sample:
    """The resources of the service's processes together, `at` seconds after the start."""

    at: float
    memory_mb: float
    files: int
    threads: int


def judge(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return for each figure its growth after the first third, by least squares, and its bound."""
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


def soak(server: Server, seconds: float, rate: float) -> tuple[list[Sample], Loaded]:
    """Send the mixture, and sample the service's processes until it ends."""
    began, step = time.monotonic(), max(0.5, seconds / 400)
    samples = [sample(server, began)]
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, server.port, "mixture", rate=rate, seconds=seconds)
        # Stop sampling before the traffic ends: closing its connections would hide growth.
        while samples[-1].at < seconds - step and not loading.done():
            wait([loading], timeout=step)
            samples.append(sample(server, began))
    return samples, loading.result()


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
    made.add_argument(
        "--minutes", type=float, default=20.0, help="duration of the traffic (default: 20)"
    )
    made.add_argument("--rate", type=float, default=20.0, help="requests per second (default: 20)")
    made.add_argument("--plot", type=Path, default=PLOT, help="where to write the plot, as SVG")
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
            say("loading each batch size first, because each keeps some memory once used")
            brief = 0.5 if options.quick else 2.0
            for kind in KINDS:
                for clients in _CROWDS:
                    load(server.port, kind, clients=clients, seconds=brief, busy_allowed=True)
            say(f"mixed traffic, {options.rate:g} requests/s for {seconds:g} s")
            samples, loaded = soak(server, seconds, options.rate)
    rows = judge(samples)
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    options.plot.write_text(plot(samples))
    say(f"plot written to {options.plot}")
    counts = ", ".join(f"{n:,} with {status}" for status, n in loaded.statuses.items())
    notes = [f"Answers: {counts}.", f"Wrong answers: {loaded.problems or 'none'}."]
    results = {
        "growth": rows,
        "statuses": loaded.statuses,
        "wrong": loaded.problems,
        "samples": [asdict(one) for one in samples[:: max(1, len(samples) // 40)]],
    }
    report("soak", options, [table_of(_COLUMNS, rows)], results, notes)
    if loaded.failures or any(row["met"] == "no" for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
