"""Attack the service, and check what it costs in memory and other clients' time.

    python -m benchmarks.attack

Each attack runs three times against a new service, while a well-behaved client searches. Bounds:
the memory (Pss) of the service's processes stays below 2.3 GB, after the third run it is within
10 % of that after the first, and the client loses no answer. The p95 of its searches stays below 4
times that without the attack, or below 1 s, and `/livez` answers within 1 s. Attacker, client and
service share the machine; the attacker has the lowest priority. The exit status is 1 if a bound is
exceeded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
import psutil  # type: ignore[import-untyped]

from benchmarks.attack.attacks import ATTACKS
from benchmarks.support.command import parse, parser, report, say
from benchmarks.support.inputs import ROOT, checkpoint
from benchmarks.support.record import table_of
from benchmarks.support.servers import Server, serving

_RUNS: Final = 3
_REST: Final = 8.0  # seconds after a run, before the memory is read; the service trims it every 5
_PEAK: Final = 2300.0  # MB
_KEPT: Final = 1.1  # times the memory after the first run
_SLOWER: Final = 4.0  # times the p95 of searches alone
_SECONDS: Final = 1.0  # for an answer of `/livez`, and for a search in any case
_COLUMNS: Final = {
    "attack": "attack",
    "idle": "MB before",
    "peak": "peak MB",
    "first": "MB after run 1",
    "last": "after run 3",
    "lost": "lost answers",
    "alone": "search p95 alone, ms",
    "during": "during, ms",
    "livez": "/livez, at most ms",
    "met": "met",
}


class Memory:
    """Samples the memory of the service's processes, in MB, until the block ends."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak = 0.0

    def now(self) -> float:
        total = 0
        for process in (self._server.process, *self._server.process.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total / 1e6

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            self.peak = max(self.peak, self.now())


@contextmanager
def neighbour(server: Server) -> Iterator[dict[str, Any]]:
    """Run the well-behaved client while the block runs, and fill in what it measured."""
    command = [sys.executable, "-m", "benchmarks.attack.neighbour", server.url]
    client = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    seen: dict[str, Any] = {}
    try:
        yield seen
    finally:
        seen.update(json.loads(client.communicate()[0]))


def send(name: str, server: Server) -> None:
    """Run an attack in a process of the lowest priority."""
    command = [sys.executable, "-m", "benchmarks.attack.attacks", name, str(server.port)]
    subprocess.run(command, cwd=ROOT, check=True, preexec_fn=lambda: os.nice(19))


def measure(name: str, runs: int, rest: float) -> dict[str, Any]:
    """Run an attack against a new service, and return its row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "MODEL_NAME": checkpoint("shapes"),
            "DEVICE": "cpu",
            "QDRANT_ENABLED": "true",
            "QDRANT_PATH": f"{folder}/qdrant",
            "THUMBNAILS_PATH": f"{folder}/thumbnails",
        }
        with serving("service:VisionEncoder", **environment) as server:
            send("fill", server)
            with neighbour(server) as alone:
                time.sleep(rest)
            after = []
            with Memory(server) as memory, neighbour(server) as during:
                idle = memory.now()
                for _ in range(runs):
                    send(name, server)
                    time.sleep(rest)
                    after.append(memory.now())
    slow, usual = (float(np.percentile(seen["search"], 95)) for seen in (during, alone))
    livez = max(during["livez"], default=float("inf"))
    met = (
        memory.peak < _PEAK
        and after[-1] <= _KEPT * after[0]
        and not during["lost"]
        and slow < max(_SLOWER * usual, _SECONDS)
        and livez < _SECONDS
    )
    return {
        "attack": name,
        "idle": idle,
        "peak": memory.peak,
        "first": after[0],
        "last": after[-1],
        "lost": during["lost"],
        "alone": usual * 1000,
        "during": slow * 1000,
        "livez": livez * 1000,
        "met": "yes" if met else "no",
    }


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__, model=False)
    made.add_argument("--only", choices=ATTACKS, nargs="+", metavar="NAME", help=", ".join(ATTACKS))
    options = parse(made, argv)
    names = options.only or (["headers"] if options.quick else list(ATTACKS))
    rows = []
    for name in names:
        row = measure(name, 1 if options.quick else _RUNS, 1.0 if options.quick else _REST)
        say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in row.items()))
        rows.append(row)
    report("attack", options, [table_of(_COLUMNS, rows)], rows)
    if not options.quick and any(row["met"] == "no" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
