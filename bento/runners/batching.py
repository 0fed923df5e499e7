"""The queue in front of an encoder tower, which batches the items that wait while it is busy."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

from bento.contract.errors import NotReady
from bento.contract.halving import Halving
from bento.runners.lane import Entry, Lane, missed_deadline
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
from bento.runners.timing import TIMING, Timing

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger("vision_encoder")

_SHRUNK_SECONDS: Final = 60.0  # how long the batch limit stays lowered after out-of-memory
_STUCK_TIMES: Final = 20  # a batch hangs after this many times its predicted duration


class BatchQueue(Generic[Item, Result]):
    """Gathers items into batches for a function that is faster on many items than on one.

    No item waits for a batch to fill: a free thread takes the waiting items, within the limits, and
    runs them. So batches grow with the load. `policy` decides which items a batch takes. One thread
    runs batches on the whole tower. Several lanes have a thread each, for per-core batches.

    Args:
        name: the name of the tower, for messages and threads.
        run: computes a batch, and returns one result per item in the same order.
        run_part: the same for a per-core batch; by default `run`.
        limits: the bounds of a batch.
        observer: receives the events of the queue.
        size: returns the cost of an item, in any unit.
        warm_up: runs before the first item, in the thread that uses the whole tower. It yields the
            item count, size and duration in seconds of each batch that it ran.
        exhausted: says whether an exception means that the device's memory was too small.
        fatal: says whether an exception means that the device is lost.
        on_death: called with the reason if a thread fails or hangs. All items then fail with
            `NotReady`.
        enter: called first in each thread.
        timing: the clock, and when a batch hangs.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[list[Item]], Sequence[Result]],
        limits: Limits,
        observer: QueueObserver,
        *,
        run_part: Callable[[list[Item]], Sequence[Result]] | None = None,
        size: Callable[[Item], int] = lambda _: 1,
        warm_up: Callable[[], Iterable[tuple[int, int, float]]] = lambda: (),
        exhausted: Callable[[Exception], bool] = lambda _: False,
        fatal: Callable[[Exception], bool] = lambda _: False,
        on_death: Callable[[str], None] = lambda _: None,
        enter: Callable[[], None] = lambda: None,
        timing: Timing = TIMING,
    ) -> None:
        self.name = name
        self.pace = Pace()
        self.limits = limits
        self._run = run
        self._run_part = run_part or run
        self._observer = observer
        self._size = size
        self._warm_up = warm_up
        self._exhausted = exhausted
        self._fatal = fatal
        self._on_death = on_death
        self._enter = enter
        self._timing = timing
        self._waiting: deque[Entry[Item, Result]] = deque()
        self._mean_size: float | None = None  # the mean size of the latest items
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
        self._over = threading.Event()  # set when no further item will be answered
        self._start(self._whole)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._death is None

    def wait_until_warm(self) -> None:
        """Wait until the warm-up ends. Raises what the warm-up or `enter` raised."""
        self._ready.result()

    def submit(self, item: Item, **options: float) -> Future[Result]:
        """Queue an item, as `submit_all` does."""
        return self.submit_all([item], **options)[0]

    def submit_all(
        self, items: Sequence[Item], *, deadline: float = math.inf
    ) -> list[Future[Result]]:
        """Queue items at the same time, and return the futures of their results.

        To drop an item, cancel its future before its batch starts. If an item is predicted to miss
        `deadline`, in seconds of the clock, the queue sheds it: its future fails with `Busy`.

        Raises `NotReady` if the queue died, and `RuntimeError` after `close`.
        """
        now, size = self._timing.clock(), self._size
        entries: list[Entry[Item, Result]]
        entries = [Entry(item, size(item), Future(), now, deadline) for item in items]
        with self._lock:
            if self._death is not None:
                raise NotReady(self._death)
            if self._closing:
                raise RuntimeError(f"the {self.name} runner is closed")
            self._waiting += entries
            self._wake()
        return [entry.future for entry in entries]

    def predicted_seconds(self, count: int) -> float:
        """Return how many seconds an item takes that comes after `count` others.

        This includes the item's own batch.
        """
        batches = math.ceil(count / (self.count_limit() * self.limits.lanes))
        return self.pace.seconds(count * self._item_size, batches) + self._batch_seconds(count + 1)

    def count_limit(self) -> int:
        """Return how many items a batch may have now.

        The limit is lower for a while after the device ran out of memory, and if more items would
        take longer than `Limits.seconds` at the tower's best pace. It does not follow the current
        pace: if other processes take the cores, smaller batches only reduce the throughput.
        """
        shrunk = self._timing.clock() < self._shrunk_until
        most = self._shrunk if shrunk else self.limits.most
        return count_limit(self.limits, most, self.pace.best * self._item_size)

    def tick(self, seconds: float) -> None:
        """Fail the queue if its tower hangs. The caller calls this every `seconds`.

        The queue adds up these seconds instead of reading the clock. Otherwise the towers of a
        process that was paused and resumed would seem to hang.
        """
        for lane in self._lanes:
            lane.spent += seconds
            if lane.spent > lane.allowed and self.alive:
                why = f"the {self.name} tower has not answered for {lane.spent:.0f} s"
                self._die(why)
                self._on_death(why)

    def close(self) -> None:
        """Drain the queue, then stop. If the tower hangs, this waits until `tick` notices it."""
        with self._lock:
            self._closing = True
            self._wake_all()
        self._over.wait()

    def _start(self, lane: Lane[Item, Result]) -> None:
        name = f"runner-{self.name}"
        threading.Thread(target=self._run_lane, args=(lane,), name=name, daemon=True).start()

    def _run_lane(self, lane: Lane[Item, Result]) -> None:
        try:
            self._enter()
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
            self._wake_all()  # so that idle lanes end too
            if not self._unfinished:
                self._over.set()

    def _die(self, why: str) -> None:
        """Reject new items, and fail all others, so that no client waits forever."""
        with self._lock:
            self._death = why
            waiting = [*self._waiting]
            self._waiting.clear()
            batches = [entry for lane in self._lanes for entry in lane.batch]
            left = [entry for entry in batches if not entry.future.done()]
            # clients may cancel their items until this call
            left += [entry for entry in waiting if entry.future.set_running_or_notify_cancel()]
            for entry in left:
                entry.future.set_exception(NotReady(why))
            self._wake_all()
        self._over.set()

    def _take_turn(self, lane: Lane[Item, Result]) -> bool:
        """Wait for the next batch of a lane. Returns False if there will be none."""
        with self._lock:
            answered, lane.batch = len(lane.batch), []
            while self.alive:
                if lane in self._ready_lanes():
                    lane.batch = self._take(lane, answered)
                self._wake()  # another lane may take the items that are left
                if lane.batch:
                    return True
                if self._closing and not self._waiting:
                    break
                lane.turn.wait()
                answered = 0
            return False

    def _ready_lanes(self) -> list[Lane[Item, Result]]:
        busy = [bool(lane.batch) for lane in self._lanes]
        return [self._lanes[i] for i in ready_lanes(busy, len(self._waiting))]

    def _wake(self) -> None:
        """Wake a lane that may take a batch."""
        for lane in self._ready_lanes()[:1]:
            lane.turn.notify()

    def _wake_all(self) -> None:
        for lane in self._lanes:
            lane.turn.notify()

    def _take(self, lane: Lane[Item, Result], answered: int) -> list[Entry[Item, Result]]:
        """Take a batch within the limits from the head of the queue.

        This lane has just answered `answered` items.
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
            if entry.future.set_running_or_notify_cancel():
                self._observer.waited(self._timing.clock() - entry.queued)
                batch.append(entry)
            else:
                self._observer.dropped()
        return batch

    def _shed_late(self) -> None:
        """Shed the items that would miss their deadline even in the next batch."""
        answered = self._timing.clock() + self._batch_seconds(len(self._waiting))
        late, in_time = split_late(self._waiting, answered)
        if late:
            self._waiting = deque(in_time)
        for entry in late:
            if entry.future.set_running_or_notify_cancel():
                self._observer.late()
                entry.future.set_exception(missed_deadline(self.name))
            else:
                self._observer.dropped()

    def _batch_seconds(self, count: int) -> float:
        """Return the predicted duration of the next batch if `count` items wait, in seconds."""
        return self.pace.seconds(min(count * self._item_size, self.pace.usual_size))

    @property
    def _item_size(self) -> float:
        return self._mean_size or 1.0

    def _answer(self, lane: Lane[Item, Result]) -> None:
        """Run the batch of a lane. A failed batch is halved until the faulty item is alone."""
        clock = self._timing.clock
        run = self._run if lane is self._whole else self._run_part
        for part in (parts := Halving(lane.batch)):
            started, size = clock(), sum(entry.size for entry in part)
            predicted = self.pace.seconds(size * lane.shares)
            lane.spent, lane.allowed = 0.0, max(self._timing.stuck, _STUCK_TIMES * predicted)
            try:
                results = run([entry.item for entry in part])
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
                    logger.exception("the %s tower failed on an item", self.name)
                    self._observer.failed()
                    part[0].future.set_exception(error)
                continue
            lane.allowed = math.inf
            seconds = clock() - started
            self._observer.ran(len(part), seconds)
            with self._lock:
                self._learn(len(part), size, seconds, lane)
                if self.alive:  # otherwise `_die` has failed these items
                    for entry, result in answers:
                        entry.future.set_result(result)

    def _learn(self, count: int, size: int, seconds: float, lane: Lane[Item, Result]) -> None:
        """Update the predictions with a batch.

        The pace is that of the whole tower, which computes one batch per share in this time.
        """
        self.pace.observe(size * lane.shares, seconds)
        mean = size / count
        before = mean if self._mean_size is None else self._mean_size
        self._mean_size = DECAY * before + (1 - DECAY) * mean

    def _shrink(self, count: int) -> None:
        """Lower the batch limit for a while, after a batch of `count` items ran out of memory."""
        self._shrunk = max(1, count // 2)
        self._shrunk_until = self._timing.clock() + _SHRUNK_SECONDS
        logger.warning(
            "the device ran out of memory on a batch of %d in the %s queue: "
            "the limit is %d for the next %.0f s",
            *(count, self.name, self._shrunk, _SHRUNK_SECONDS),
        )
