"""Choose the items of the next batch, in pure functions: no threads, no locks, no clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a batch.

    Attributes:
        count: the most items that the tower computes at the same time.
        seconds: the longest that a batch may take, at the tower's best pace so far.
        step: a batch of at least 2 steps has `most` items or a multiple of `step`.
        lanes: how many per-core batches run at the same time. Each may have an equal share of
            `count`, but at least 2 steps. If the tower is idle and fewer items than lanes wait,
            they form one batch on the whole tower. With 1 lane, every batch uses the whole tower.
    """

    count: int
    seconds: float = math.inf
    step: int = 1
    lanes: int = 1

    @property
    def most(self) -> int:
        """The most items that a batch may have."""
        return min(self.count, max(math.ceil(self.count / self.lanes), 2 * self.step))


class HasDeadline(Protocol):
    """An item that the queue sheds if it would be answered after its deadline."""

    @property
    def deadline(self) -> float: ...


Waiting = TypeVar("Waiting", bound=HasDeadline)


def whole_steps(count: int, limits: Limits) -> int:
    """Round a number of items down to whole steps, except fewer than 2 steps and `limits.most`."""
    if count < 2 * limits.step or count == limits.most:
        return count
    return count - count % limits.step


def count_limit(limits: Limits, most: int, item_seconds: float) -> int:
    """Return how many items a batch may have: `most`, or fewer to stay within `limits.seconds`.

    An item takes `item_seconds` on the whole tower, and `limits.lanes` times as long on one core.
    Infinity means that no batch has run yet.
    """
    seconds = item_seconds * limits.lanes
    if limits.seconds < most * seconds < math.inf:
        most = max(1, int(limits.seconds / seconds))
    return whole_steps(most, limits)


def lane_share(limits: Limits, waiting: int, in_flight: int) -> int:
    """Return how many of the waiting items a per-core batch takes, before other limits.

    `in_flight` counts the items on all lanes, and those that this lane has just answered.
    Closed-loop clients resubmit at once, so one more lane's share stays in the queue.
    """
    share = math.ceil((waiting + in_flight) / (limits.lanes + 1))
    if share >= 2 * limits.step:
        share = math.ceil(share / limits.step) * limits.step
    return min(waiting, share)


def ready_lanes(busy: Sequence[bool], waiting: int) -> list[int]:
    """Return the lanes that may take a batch now, by their index in `busy`.

    Lane 0 uses the whole tower, so it never runs at the same time as another lane.
    """
    whole, *cores = busy
    if whole or not waiting:
        return []
    if not cores or (waiting < len(cores) and not any(cores)):
        return [0]
    return [lane for lane, is_busy in enumerate(busy) if lane and not is_busy]


def split_late(waiting: Iterable[Waiting], answered: float) -> tuple[list[Waiting], list[Waiting]]:
    """Return the items whose deadline is before the time `answered`, and the other items."""
    late: list[Waiting] = []
    in_time: list[Waiting] = []
    for item in waiting:
        (late if item.deadline < answered else in_time).append(item)
    return late, in_time
