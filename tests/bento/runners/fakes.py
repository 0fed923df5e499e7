"""Stand-ins for what a queue works with: towers that can be held, a clock that stands still."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from bento.runners.batching import BatchQueue

Make = Callable[..., BatchQueue[int, int]]


class Gone(BaseException):
    """Ends a thread, as nothing that is caught does."""


class Tower:
    """A stand-in for an encoder tower: doubles numbers, can be held, chokes on some."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.free = threading.Event()
        self.free.set()
        self.room = 1000  # items that its memory holds

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
    """A stand-in for a tower with lanes: each batch is held until it is let go."""

    def __init__(self) -> None:
        self.running: list[tuple[int, list[int]]] = []  # by the shares that its thread entered with
        self._own = threading.local()
        self._over = False
        self._changed = threading.Condition()

    def enter(self, shares: int) -> None:
        self._own.shares = shares

    def run(self, items: list[int]) -> list[int]:
        batch = (self._own.shares, list(items))
        with self._changed:
            self.running.append(batch)
            self._changed.notify_all()
            self._changed.wait_for(lambda: batch not in self.running or self._over)
        if items[0] < 0:
            raise Gone("over")
        return [2 * item for item in items]

    def expect(self, *batches: tuple[int, list[int]]) -> None:
        """Wait until these batches are on the tower, and no others."""
        with self._changed:
            self._changed.wait_for(lambda: sorted(self.running) == sorted(batches), 2)
            assert sorted(self.running) == sorted(batches)

    def stop(self) -> None:
        """Hold nothing any more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def let_go(self, *items: int) -> None:
        """End the batches that have one of these items."""
        with self._changed:
            self.running = [batch for batch in self.running if not {*items} & {*batch[1]}]
            self._changed.notify_all()


class Reports:
    """Keeps what a queue tells about itself."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.batches: list[int] = []
        self.gone = 0
        self.refused = 0
        self.failures = 0

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def ran(self, count: int, seconds: float) -> None:
        self.batches.append(count)

    def dropped(self) -> None:
        self.gone += 1

    def late(self) -> None:
        self.refused += 1

    def failed(self) -> None:
        self.failures += 1


class Clock:
    """What the queue takes for the time; it stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def hold(tower: Tower, queue: BatchQueue[int, int]) -> Future[int]:
    """Occupy the tower with one item until `tower.free` is set."""
    tower.free.clear()
    future = queue.submit(100)
    assert tower.started.wait(10)
    return future


def timed(tower: Tower, clock: Clock, seconds: float) -> Callable[[list[int]], list[int]]:
    """Let a tower take some seconds for each item, by the queue's clock."""

    def run(items: list[int]) -> list[int]:
        results = tower.run(items)
        clock.now += seconds * len(items)
        return results

    return run
