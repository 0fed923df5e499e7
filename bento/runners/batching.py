"""One queue before one encoder tower: whatever waits goes as soon as the tower is free."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from typing import Final, Generic, Protocol, TypeVar

from bento.contract.errors import Busy, NotReady
from bento.contract.halving import Halving
from bento.runners.pace import DECAY, Pace

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger("vision_encoder")

_SHRUNK_SECONDS: Final = 60.0  # how long a batch limit stays lowered after out-of-memory
# A batch is given up, and the runner with it, after so many times the predicted seconds, and never
# before these: a first batch of its size may have to be compiled.
_STUCK_TIMES: Final = 20
STUCK_SECONDS: Final = 120.0


class Observer(Protocol):
    """What a queue tells about itself, for metrics."""

    def waited(self, seconds: float) -> None:
        """An item left the queue for the tower."""

    def ran(self, count: int, seconds: float) -> None:
        """A batch was answered."""

    def dropped(self) -> None:
        """An item was given up by who sent it, before it cost anything."""

    def late(self) -> None:
        """An item was refused, because its answer would have come too late."""

    def failed(self) -> None:
        """An item failed alone."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a batch: how many items, and its seconds on a tower that nothing slows down.

    Of more than two `step`s of items it has a multiple of `step`, or as many as it may have.

    With several `lanes` so many batches are on the tower at a time, each on its share of it, with
    its share of `count`, or two steps; but fewer items than lanes, when nothing is on the tower,
    are one batch that has all of it.
    """

    count: int
    seconds: float = math.inf
    step: int = 1
    lanes: int = 1

    @property
    def most(self) -> int:
        """Return how many items a batch may have."""
        return min(self.count, max(math.ceil(self.count / self.lanes), 2 * self.step))


@dataclass(frozen=True, slots=True)
class _Entry(Generic[Item, Result]):
    item: Item
    size: int
    future: Future[Result]
    queued: float
    due: float


class _Lane(Generic[Item, Result]):
    """A thread of a queue, and the batch that it has on one of `shares` parts of the tower.

    `spent` are the seconds that the tower has had for it, and `allowed` those that it may have.
    """

    def __init__(self, shares: int, lock: threading.RLock) -> None:
        self.shares = shares
        self.turn = threading.Condition(lock)
        self.batch: list[_Entry[Item, Result]] = []
        self.spent = 0.0
        self.allowed = math.inf


class BatchQueue(Generic[Item, Result]):
    """Gathers items into batches for a function that is faster on many than on one.

    A lone item is never held back: a thread takes what is queued, within its limits, runs it,
    and looks again. Batches grow because load does. With several lanes each has a thread, and the
    batches on all of the tower have one more.

    `size` is an item's cost in units of the caller's choice. `enter` is called in each thread
    first, with the number of parts that the tower is shared out in to those like it. `warm_up`
    runs in the thread that has all of the tower, before anything else, and yields the count, size
    and seconds of each batch that it ran. `exhausted` says of an exception that the device's
    memory was too small, `fatal` that the device is lost. When a thread ends other than by
    `close`, what waits fails with `NotReady` and `on_death` is called.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[list[Item]], Sequence[Result]],
        limits: Limits,
        observer: Observer,
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
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._mean_size: float | None = None  # of an item, as of late
        self._shrunk = limits.most  # the count limit until `_shrunk_until`
        self._shrunk_until = 0.0
        self._closing = False
        self._death: str | None = None
        self._lock = threading.RLock()
        self._whole: _Lane[Item, Result] = _Lane(1, self._lock)  # has all of the tower
        parts = limits.lanes if limits.lanes > 1 else 0
        self._parts = [_Lane[Item, Result](parts, self._lock) for _ in range(parts)]
        self._lanes = [self._whole, *self._parts]
        self._unfinished = len(self._lanes)
        self._ready: Future[None] = Future()
        self._over = threading.Event()  # nothing more will be answered
        self._start(self._whole)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._death is None

    def wait_until_warm(self) -> None:
        """Wait for the warm-up, and raise what it raised."""
        self._ready.result()

    def submit(self, item: Item, *, due: float = math.inf) -> Future[Result]:
        """Queue one item. Cancelling the future before its batch starts drops the item.

        It fails with `Busy` instead of running when its answer would predictably come after `due`.
        """
        entry: _Entry[Item, Result] = _Entry(item, self._size(item), Future(), monotonic(), due)
        with self._lock:
            if self._death is not None:
                raise NotReady(self._death)
            if self._closing:
                raise RuntimeError(f"the {self.name} runner is closed")
            self._waiting.append(entry)
            self._wake()
        return entry.future

    def predicted_seconds(self, count: int) -> float:
        """Return how long an item predictably takes after `count` others, its batch included."""
        batches = math.ceil(count / (self.count_limit() * self.limits.lanes))
        return self.pace.seconds(count * self._item_size, batches) + self._batch_seconds(count + 1)

    def count_limit(self) -> int:
        """Return how many items a batch may have now.

        These are fewer for a while after out-of-memory, and where more would take too long. That
        goes by the tower's best pace: what slows it down when others take the cores is hardly less
        in a smaller batch, and small ones would only make it slower still.
        """
        limit = self._shrunk if monotonic() < self._shrunk_until else self.limits.most
        seconds = self.pace.best * self._item_size * self.limits.lanes
        if self.limits.seconds < limit * seconds < math.inf:
            limit = max(1, int(self.limits.seconds / seconds))
        return self._step(limit)

    def tick(self, seconds: float) -> None:
        """Give the runner up when its tower hangs; to be called every so many seconds.

        Calls are counted instead of reading the clock, so that a process that was stopped for a
        while does not find everything late.
        """
        for lane in self._lanes:
            lane.spent += seconds
            if lane.spent > lane.allowed and self.alive:
                why = f"the {self.name} tower has not answered for {lane.spent:.0f} s"
                self._die(why)
                self._on_death(why)

    def close(self) -> None:
        """Finish what was accepted, then stop. A tower that hangs is waited for until `tick`."""
        with self._lock:
            self._closing = True
            self._wake_all()
        self._over.wait()

    def _start(self, lane: _Lane[Item, Result]) -> None:
        name = f"runner-{self.name}"
        threading.Thread(target=self._live, args=(lane,), name=name, daemon=True).start()

    def _live(self, lane: _Lane[Item, Result]) -> None:
        try:
            self._enter(lane.shares)
            if lane is self._whole:
                for count, size, seconds in self._warm_up():
                    self._learn(count, size, seconds, lane)
                self._ready.set_result(None)
                for part in self._parts:
                    self._start(part)
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
            self._wake_all()  # to end too, when there is nothing left
            if not self._unfinished:
                self._over.set()

    def _die(self, why: str) -> None:
        """Take no more, and fail what waits, so that nobody hangs."""
        with self._lock:
            self._death = why
            waiting = [*self._waiting]
            self._waiting.clear()
            batches = [entry for lane in self._lanes for entry in lane.batch]
            left = [entry for entry in batches if not entry.future.done()]
            # who gives up an item at this very moment must not cost the others their answer
            left += [entry for entry in waiting if entry.future.set_running_or_notify_cancel()]
            for entry in left:
                entry.future.set_exception(NotReady(why))
            self._wake_all()
        self._over.set()

    def _take_turn(self, lane: _Lane[Item, Result]) -> bool:
        """Wait for the next batch of a lane that has answered its last; False when none comes."""
        with self._lock:
            answered, lane.batch = len(lane.batch), []
            while self.alive:
                if self._is_turn(lane):
                    lane.batch = self._take(lane, answered)
                self._wake()  # the next one, if there is something left
                if lane.batch:
                    return True
                if self._closing and not self._waiting:
                    break
                lane.turn.wait()
                answered = 0
            return False

    def _wake(self) -> None:
        """Wake the lane that may take what waits."""
        for lane in self._lanes:
            if self._is_turn(lane):
                lane.turn.notify()
                return

    def _wake_all(self) -> None:
        for lane in self._lanes:
            lane.turn.notify()

    def _is_turn(self, lane: _Lane[Item, Result]) -> bool:
        """Say whether a lane may take what waits."""
        if lane.batch or self._whole.batch or not self._waiting:
            return False
        free = not any(part.batch for part in self._parts)
        whole = not self._parts or (free and len(self._waiting) < len(self._parts))
        return whole == (lane is self._whole)

    def _take(self, lane: _Lane[Item, Result], answered: int) -> list[_Entry[Item, Result]]:
        """Take what makes a batch within the limits from the head of the queue."""
        self._refuse_late()
        batch: list[_Entry[Item, Result]] = []
        count = self._step(min(self.count_limit(), self._share(lane, answered)))
        while self._waiting and len(batch) < count:
            entry = self._waiting.popleft()
            if not entry.future.set_running_or_notify_cancel():
                self._observer.dropped()
                continue
            self._observer.waited(monotonic() - entry.queued)
            batch.append(entry)
        return batch

    def _share(self, lane: _Lane[Item, Result], answered: int) -> int:
        """Return how many of those that wait a lane may have, after it has answered some.

        Of clients that wait for their answer and then ask again, as many are prepared as are on
        each of the lanes.
        """
        waiting, step = len(self._waiting), self.limits.step
        if lane is self._whole:
            return waiting
        everyone = waiting + answered + sum(len(part.batch) for part in self._parts)
        even = math.ceil(everyone / (len(self._parts) + 1))
        return min(waiting, even if even < 2 * step else math.ceil(even / step) * step)

    def _refuse_late(self) -> None:
        """Refuse what would be answered too late even by the next batch."""
        answered = monotonic() + self._batch_seconds(len(self._waiting))
        late = [entry for entry in self._waiting if entry.due < answered]
        if not late:
            return
        self._waiting = deque(entry for entry in self._waiting if entry.due >= answered)
        for entry in late:
            if not entry.future.set_running_or_notify_cancel():
                self._observer.dropped()
                continue
            self._observer.late()
            entry.future.set_exception(
                Busy(f"the {self.name} items before yours took too long: try again later")
            )

    def _step(self, count: int) -> int:
        """Return how many of `count` items may go together."""
        if count < 2 * self.limits.step or count == self.limits.most:
            return count
        return count - count % self.limits.step

    def _batch_seconds(self, count: int) -> float:
        """Return what the next batch predictably takes, of `count` items that it could have."""
        return self.pace.seconds(min(count * self._item_size, self.pace.usual_size))

    @property
    def _item_size(self) -> float:
        return self._mean_size or 1.0

    def _answer(self, lane: _Lane[Item, Result]) -> None:
        """Run the batch of a lane; one that fails is halved until the guilty item is alone."""
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
                if self.alive:  # and the batch was not given up meanwhile
                    for entry, result in answers:
                        entry.future.set_result(result)

    def _learn(self, count: int, size: int, seconds: float, lane: _Lane[Item, Result]) -> None:
        """Learn from a batch; on all of the tower as many as it has parts take as long."""
        self.pace.observe(size * lane.shares, seconds)
        mean = size / count
        before = mean if self._mean_size is None else self._mean_size
        self._mean_size = DECAY * before + (1 - DECAY) * mean

    def _shrink(self, count: int) -> None:
        """Let batches have half as many items for a while."""
        self._shrunk = max(1, count // 2)
        self._shrunk_until = monotonic() + _SHRUNK_SECONDS
        logger.warning(
            "the device's memory was too small for a %s batch of %d; at most %d for %.0f s",
            self.name,
            count,
            self._shrunk,
            _SHRUNK_SECONDS,
        )
