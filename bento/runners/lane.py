"""The items and the threads of a batch queue."""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from bento.contract.errors import Busy

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Entry(Generic[Item, Result]):
    """An item that waits or runs. `queued` and `deadline` are seconds of the queue's clock."""

    item: Item
    size: int
    future: Future[Result]
    queued: float
    deadline: float


class Lane(Generic[Item, Result]):
    """A thread of a queue and the batch that it runs, on one of `shares` equal parts of the tower.

    `spent` counts the seconds since the batch started. The batch hangs if they exceed `allowed`.
    """

    def __init__(self, index: int, shares: int, lock: threading.RLock) -> None:
        self.index = index
        self.shares = shares
        self.turn = threading.Condition(lock)
        self.batch: list[Entry[Item, Result]] = []
        self.spent = 0.0
        self.allowed = math.inf


def missed_deadline(tower: str) -> Busy:
    """Return the error of an item that the queue sheds."""
    return Busy(f"the {tower} queue cannot answer within MAX_QUEUE_MS: try again later")
