"""Load a server: `load` runs the generator in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from benchmarks.support.inputs import ROOT

Kind = Literal["text", "ukrainian", "image", "texts", "images", "bulk", "mixture"]
"""The kind of request. `texts` and `images` are lists of one, `bulk` is lists of `BULK` images."""
KINDS: Final[tuple[Kind, ...]] = ("image", "text")
BULK: Final = 16


@dataclass(frozen=True)
class Job:
    """A load.

    Without `rate` it is a closed loop: each client sends its next request when the last one is
    answered. With `rate`, in requests/s, it is an open loop: requests arrive at random, even if
    earlier ones have no answer yet. `mixture` needs a rate; a few clients with pauses send it.
    """

    port: int
    kind: Kind
    clients: int = 1
    rate: float | None = None
    seconds: float = 5.0
    busy_allowed: bool = False  # True: a 429 is not a failure

    @property
    def warm_up(self) -> float:
        """Seconds of load before the measured window."""
        return min(1.0, self.seconds / 2)


@dataclass(frozen=True)
class Loaded:
    """The result of a load. Latencies are in milliseconds."""

    rate: float  # answers with the expected status per second, within the window
    statuses: dict[str, int]  # of the answers after the warm-up
    errors: int  # after the warm-up: failed connections and requests without an answer
    failures: int  # errors and unexpected statuses, warm-up included
    requests: int  # warm-up included
    problems: dict[str, int]  # failures by description
    latency: (
        dict[str, float] | None
    )  # p50, p95, p99, max of the answers in `rate`; None if there are none
    busy_latency: dict[str, float] | None  # the same for 429s
    cpu_ms: float  # CPU time of the generator per request

    @property
    def p50(self) -> float:
        return self.of("p50")

    def of(self, name: str) -> float:
        """Return a figure of `latency`. Raises `RuntimeError` if there are no such answers."""
        if self.latency is None:
            raise RuntimeError(f"no request was answered with 200; statuses: {self.statuses}")
        return self.latency[name]


def load(port: int, kind: Kind, **options: Any) -> Loaded:
    """Run a `Job` with these options; return when its last request is answered."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.support.generator"],
        cwd=ROOT,
        input=json.dumps(asdict(Job(port, kind, **options))).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return Loaded(**json.loads(done.stdout))
