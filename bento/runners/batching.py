"""The queue in front of an encoder tower: when the tower is free, the waiting items go at once."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Final, Generic, TypeVar

from bento.contract.errors import Busy, NotReady
from bento.contract.halving import Halving
from bento.runners.lane import Entry, Lane
from bento.runners.observer import QueueObserver
from bento.runners.pace import DECAY, Pace
from bento.runners.policy import (
    Limits,
    count_limit,
    lane_share,
    ready_lanes,
    split_late,
    whole_steps,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger("vision_encoder")

_SHRUNK_SECONDS: Final = 60.0  # how long the batch limit stays lowered after out-of-memory
# A batch hangs after so many times its predicted seconds, but not before STUCK_SECONDS: the first
# batch of a size may be compiled.
_STUCK_TIMES: Final = 20
STUCK_SECONDS: Final = 120.0


class BatchQueue(Generic[Item, Result]):
    """Gathers items into batches for a function that is faster on many items than on one.

    No item waits for a batch to fill: a thread takes what is queued, within the limits, runs it,
    and looks again. Batches grow with the load. `policy` decides what a batch takes. One thread
    runs the batches on the whole tower; with several lanes, one thread more per lane runs the
    per-core batches.

    Args:
        name: of the tower, for messages and threads.
        run: computes a batch, and returns a result per item in the same order.
        limits: the bounds of a batch.
        observer: receives the reports of the queue.
        size: the cost of an item, in any unit.
        warm_up: runs before all items, in the thread that has the whole tower. It yields count,
            size and seconds of each batch that it ran.
        exhausted: says of an exception that the device's memory was too small.
        fatal: says of an exception that the device is lost.
        on_death: called with the reason when a thread ends other than by `close`. Waiting items
            then fail with `NotReady`.
        enter: called first in each thread, with the number of threads that share the tower.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[list[Item]], Sequence[Result]],
        limits: Limits,
        observer: QueueObserver,
        *,
        size: Callable[[Item], int] = lambda item: 1,
        warm_up: Callable[[], Iterable[tuple[int, int, float]]] = lambda: (),
        exhausted: Callable[[Exception], bool] = lambda error: False,
        fatal: Callable[[Exception], bool] = lambda error: False,
        on_death: Callable[[str], None] = lambda why: None,
        enter: Callable[[int], None] = lambda shares: None,
    ) -> None:
        self.name = name
        self.pace = Pace()
        self.limits = limits
        self._run = run
        self._observer = observer
        self._size = size
        self._warm_up = warm_up
        self._exhausted = exhausted
        self._fatal = fatal
        self._on_death = on_death
        self._enter = enter
        self._waiting: deque[Entry[Item, Result]] = deque()
        self._mean_size: float | None = None  # of the latest items
        self._shrunk = limits.most  # the limit of items until `_shrunk_until`
        self._shrunk_until = 0.0
        self._closing = False
        self._death: str | None = None
        self._lock = threading.RLock()
        self._whole: Lane[Item, Result] = Lane(0, 1, self._lock)
        cores = limits.lanes if limits.lanes > 1 else 0
        self._cores = [Lane[Item, Result](1 + i, cores, self._lock) for i in range(cores)]
        self._lanes = [self._whole, *self._cores]
        self._unfinished = len(self._lanes)
        self._ready: Future[None] = Future()
        self._over = threading.Event()  # no further item will be answered
        self._start(self._whole)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._death is None

    def wait_until_warm(self) -> None:
        """Wait for the warm-up, and raise what it raised."""
        self._ready.result()

    def submit(self, item: Item, *, deadline: float = math.inf) -> Future[Result]:
        """Queue an item. To drop it, cancel the future before its batch starts.

        The queue sheds the item if its answer is predicted to miss `deadline`, in seconds of
        `monotonic`: then the future fails with `Busy`. Raises `NotReady` after the queue died, and
        `RuntimeError` after `close`.
        """
        entry: Entry[Item, Result] = Entry(item, self._size(item), Future(), monotonic(), deadline)
        with self._lock:
            if self._death is not None:
                raise NotReady(self._death)
            if self._closing:
                raise RuntimeError(f"the {self.name} runner is closed")
            self._waiting.append(entry)
            self._wake()
        return entry.future

    def predicted_seconds(self, count: int) -> float:
        """Return how long an item takes after `count` others, its own batch included."""
        batches = math.ceil(count / (self.count_limit() * self.limits.lanes))
        return self.pace.seconds(count * self._item_size, batches) + self._batch_seconds(count + 1)

    def count_limit(self) -> int:
        """Return how many items a batch may have now.

        The limit is lower for a while after out-of-memory, and if more items would take too long.
        The latter goes by the tower's best pace. If other processes take the cores, a smaller batch
        is hardly less slow, and small batches would only slow the tower down further.
        """
        most = self._shrunk if monotonic() < self._shrunk_until else self.limits.most
        return count_limit(self.limits, most, self.pace.best * self._item_size)

    def tick(self, seconds: float) -> None:
        """Fail the queue if its tower hangs. The caller calls this every `seconds`.

        Calls are counted instead of reading the clock, so that a process that was paused does not
        take its tower for hanging.
        """
        for lane in self._lanes:
            lane.spent += seconds
            if lane.spent > lane.allowed and self.alive:
                why = f"the {self.name} tower has not answered for {lane.spent:.0f} s"
                self._die(why)
                self._on_death(why)

    def close(self) -> None:
        """Drain the queue, then stop. If the tower hangs, wait until `tick` notices."""
        with self._lock:
            self._closing = True
            self._wake_all()
        self._over.wait()

    def _start(self, lane: Lane[Item, Result]) -> None:
        name = f"runner-{self.name}"
        threading.Thread(target=self._live, args=(lane,), name=name, daemon=True).start()

    def _live(self, lane: Lane[Item, Result]) -> None:
        try:
            self._enter(lane.shares)
            if lane is self._whole:
                for count, size, seconds in self._warm_up():
                    self._learn(count, size, seconds, lane)
                self._ready.set_result(None)
                for core in self._cores:
                    self._start(core)
            while self._take_turn(lane):
                self._answer(lane)
        except BaseException as error:
            if not self._ready.done():
                self._die(f"the {self.name} runner did not start: {error}")
                self._ready.set_exception(error)
            elif self.alive:
                logger.exception("the %s runner died", self.name)
                self._die(f"the {self.name} runner died: {type(error).__name__}: {error}")
                self._on_death(self._death or "")
        with self._lock:
            self._unfinished -= 1
            self._wake_all()  # the other lanes end too if nothing is left
            if not self._unfinished:
                self._over.set()

    def _die(self, why: str) -> None:
        """Accept nothing more, and fail all items, so that no client waits forever."""
        with self._lock:
            self._death = why
            waiting = [*self._waiting]
            self._waiting.clear()
            batches = [entry for lane in self._lanes for entry in lane.batch]
            left = [entry for entry in batches if not entry.future.done()]
            # a client may cancel its item at this moment
            left += [entry for entry in waiting if entry.future.set_running_or_notify_cancel()]
            for entry in left:
                entry.future.set_exception(NotReady(why))
            self._wake_all()
        self._over.set()

    def _take_turn(self, lane: Lane[Item, Result]) -> bool:
        """Wait for the next batch of a lane; return False when there will be none."""
        with self._lock:
            answered, lane.batch = len(lane.batch), []
            while self.alive:
                if lane.index in self._ready_lanes():
                    lane.batch = self._take(lane, answered)
                self._wake()  # the next lane, if items are left
                if lane.batch:
                    return True
                if self._closing and not self._waiting:
                    break
                lane.turn.wait()
                answered = 0
            return False

    def _ready_lanes(self) -> list[int]:
        return ready_lanes([bool(lane.batch) for lane in self._lanes], len(self._waiting))

    def _wake(self) -> None:
        """Wake a lane that may take a batch."""
        for index in self._ready_lanes()[:1]:
            self._lanes[index].turn.notify()

    def _wake_all(self) -> None:
        for lane in self._lanes:
            lane.turn.notify()

    def _take(self, lane: Lane[Item, Result], answered: int) -> list[Entry[Item, Result]]:
        """Take a batch within the limits from the head of the queue.

        `answered` counts the items that this lane has just answered.
        """
        self._shed_late()
        share = len(self._waiting)
        if lane is not self._whole:
            in_flight = answered + sum(len(core.batch) for core in self._cores)
            share = lane_share(self.limits, share, in_flight)
        count = whole_steps(min(self.count_limit(), share), self.limits)
        batch: list[Entry[Item, Result]] = []
        while self._waiting and len(batch) < count:
            entry = self._waiting.popleft()
            if not entry.future.set_running_or_notify_cancel():
                self._observer.dropped()
                continue
            self._observer.waited(monotonic() - entry.queued)
            batch.append(entry)
        return batch

    def _shed_late(self) -> None:
        """Shed the items that would miss their deadline even in the next batch."""
        answered = monotonic() + self._batch_seconds(len(self._waiting))
        late, in_time = split_late(self._waiting, answered)
        if not late:
            return
        self._waiting = deque(in_time)
        for entry in late:
            if not entry.future.set_running_or_notify_cancel():
                self._observer.dropped()
                continue
            self._observer.late()
            entry.future.set_exception(
                Busy(f"the {self.name} items before yours took too long: try again later")
            )

    def _batch_seconds(self, count: int) -> float:
        """Return the predicted seconds of the next batch, if `count` items are available to it."""
        return self.pace.seconds(min(count * self._item_size, self.pace.usual_size))

    @property
    def _item_size(self) -> float:
        return self._mean_size or 1.0

    def _answer(self, lane: Lane[Item, Result]) -> None:
        """Run the batch of a lane. A failed batch is halved until the faulty item is alone."""
        for part in (parts := Halving(lane.batch)):
            started, size = monotonic(), sum(entry.size for entry in part)
            predicted = self.pace.seconds(size * lane.shares)
            lane.spent, lane.allowed = 0.0, max(STUCK_SECONDS, _STUCK_TIMES * predicted)
            try:
                results = self._run([entry.item for entry in part])
                answers = list(zip(part, results, strict=True))
            except Exception as error:
                lane.allowed = math.inf
                if not self.alive:
                    return
                if self._fatal(error):
                    raise
                if self._exhausted(error):
                    self._shrink(len(part))
                if not parts.halve():
                    logger.exception("an item of the %s runner failed", self.name)
                    self._observer.failed()
                    part[0].future.set_exception(error)
                continue
            lane.allowed = math.inf
            seconds = monotonic() - started
            self._observer.ran(len(part), seconds)
            with self._lock:
                self._learn(len(part), size, seconds, lane)
                if self.alive:  # otherwise `_die` has failed these items
                    for entry, result in answers:
                        entry.future.set_result(result)

    def _learn(self, count: int, size: int, seconds: float, lane: Lane[Item, Result]) -> None:
        """Learn from a batch. On the whole tower, one batch per share takes as long together."""
        self.pace.observe(size * lane.shares, seconds)
        mean = size / count
        before = mean if self._mean_size is None else self._mean_size
        self._mean_size = DECAY * before + (1 - DECAY) * mean

    def _shrink(self, count: int) -> None:
        """Halve the batch limit for a while, after a batch of `count` items ran out of memory."""
        self._shrunk = max(1, count // 2)
        self._shrunk_until = monotonic() + _SHRUNK_SECONDS
        logger.warning(
            "the device's memory was too small for a %s batch of %d; at most %d for %.0f s",
            self.name,
            count,
            self._shrunk,
            _SHRUNK_SECONDS,
        )
