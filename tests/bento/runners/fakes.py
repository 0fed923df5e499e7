"""Fakes for the tests of the queue: towers that a test can block, and a clock that it advances."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from bento.runners.batching import BatchQueue

Make = Callable[..., BatchQueue[int, int]]


class ThreadEnd(BaseException):
    """Ends the thread of a queue, because the queue only handles `Exception`."""


class Tower:
    """A tower that doubles numbers. It raises for negative ones, and blocks while not `free`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.free = threading.Event()
        self.free.set()
        self.room = 1000  # larger batches raise MemoryError

    def run(self, items: list[int]) -> list[int]:
        self.batches.append(list(items))
        self.started.set()
        assert self.free.wait(10)
        if len(items) > self.room:
            raise MemoryError
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [2 * item for item in items]


class Lanes:
    """A tower with several lanes that blocks each batch until `finish`."""

    def __init__(self) -> None:
        self.running: list[tuple[int, list[int]]] = []  # the shares of the tower, and the items
        self._stopped = False
        self._changed = threading.Condition()

    def run(self, items: list[int], shares: int = 1) -> list[int]:
        batch = (shares, list(items))
        with self._changed:
            self.running.append(batch)
            self._changed.notify_all()
            self._changed.wait_for(lambda: batch not in self.running or self._stopped)
        if items[0] < 0:
            raise ThreadEnd("over")
        return [2 * item for item in items]

    def part(self, shares: int) -> Callable[[list[int]], list[int]]:
        return partial(self.run, shares=shares)

    def expect(self, *batches: tuple[int, list[int]]) -> None:
        """Wait until exactly these batches run."""
        with self._changed:
            self._changed.wait_for(lambda: sorted(self.running) == sorted(batches), 2)
            assert sorted(self.running) == sorted(batches)

    def stop(self) -> None:
        """Stop blocking batches."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def finish(self, *items: int) -> None:
        """End the batches that have one of these items."""
        with self._changed:
            self.running = [batch for batch in self.running if not {*items} & {*batch[1]}]
            self._changed.notify_all()


class Reports:
    """Records the events that a queue reports."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.batches: list[int] = []
        self.cancelled = 0
        self.shed = 0
        self.failures = 0

    def waited(self, seconds: float) -> None:
        assert seconds >= 0
        self.waits.append(seconds)

    def ran(self, count: int, seconds: float) -> None:
        self.batches.append(count)

    def dropped(self) -> None:
        self.cancelled += 1

    def late(self) -> None:
        self.shed += 1

    def failed(self) -> None:
        self.failures += 1


class Clock:
    """A clock that only moves when a test sets `now`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def occupy(tower: Tower, queue: BatchQueue[int, int]) -> Future[int]:
    """Occupy the tower with one item until `tower.free` is set."""
    tower.free.clear()
    tower.started.clear()
    future = queue.submit(100)
    assert tower.started.wait(10)
    return future


def timed(tower: Tower, clock: Clock, seconds: float) -> Callable[[list[int]], list[int]]:
    """Return the tower's `run`, which advances the clock by this time for each item."""

    def run(items: list[int]) -> list[int]:
        results = tower.run(items)
        clock.now += seconds * len(items)
        return results

    return run
