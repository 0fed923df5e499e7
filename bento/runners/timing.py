"""The clock of the runners, and their time limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Final


@dataclass(frozen=True)
class Timing:
    """The clock of the runners, and their time limits in seconds.

    Attributes:
        clock: returns the time; it never goes back.
        stuck: a batch that takes longer hangs. The limit is high because the first batch of a size
            may be compiled. `BatchQueue` raises it for batches that are predicted to be slow.
        tick: how often the watchdog looks for a tower that hangs.
        healthy: a tower that answered within this time is healthy.
        probe: how long a health check waits for an answer.
    """

    clock: Callable[[], float] = monotonic
    stuck: float = 120.0
    tick: float = 1.0
    healthy: float = 5.0
    probe: float = 10.0


TIMING: Final = Timing()
