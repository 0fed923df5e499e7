"""The queue: batches grow with load, nobody waits for one to fill, faults stay alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import pytest

from bento.contract.errors import Busy, NotReady
from bento.runners import batching
from bento.runners.batching import BatchQueue, Limits
from bento.runners.pace import Pace


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(batching, "monotonic", clock)
    return clock


@pytest.fixture
def tower() -> Tower:
    return Tower()


@pytest.fixture
def reports() -> Reports:
    return Reports()


Make = Callable[..., BatchQueue[int, int]]


@pytest.fixture
def lanes() -> Lanes:
    return Lanes()


@pytest.fixture
def make(tower: Tower, lanes: Lanes, reports: Reports) -> Iterator[Make]:
    queues: list[BatchQueue[int, int]] = []

    def make_queue(limits: Limits | None = None, **options: Any) -> BatchQueue[int, int]:
        run = options.pop("run", tower.run)
        queues.append(BatchQueue("test", run, limits or Limits(4), reports, **options))
        return queues[-1]

    yield make_queue
    tower.free.set()
    lanes.stop()
    for queue in queues:
        queue.close()


@pytest.fixture
def queue(make: Make) -> BatchQueue[int, int]:
    return make()


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


def test_a_lone_item_goes_at_once(
    tower: Tower, reports: Reports, queue: BatchQueue[int, int]
) -> None:
    assert queue.submit(21).result(10) == 42
    assert tower.batches == [[21]]
    assert reports.batches == [1]
    assert len(reports.waits) == 1


def test_what_waits_goes_together_up_to_the_limit(
    tower: Tower, queue: BatchQueue[int, int]
) -> None:
    first = hold(tower, queue)
    futures = [queue.submit(i) for i in range(6)]
    tower.free.set()
    assert [f.result(10) for f in futures] == [0, 2, 4, 6, 8, 10]
    assert first.result(10) == 200
    assert tower.batches == [[100], [0, 1, 2, 3], [4, 5]]


def test_a_batch_ends_where_it_would_take_too_long(tower: Tower, make: Make, clock: Clock) -> None:
    known = [(1, 1, 3.0), (4, 4, 6.0)]
    queue = make(Limits(100, seconds=5.0), run=timed(tower, clock, 1.5), warm_up=lambda: known)
    hold(tower, queue)
    futures = [queue.submit(i) for i in range(4)]
    tower.free.set()
    assert [f.result(10) for f in futures] == [0, 2, 4, 6]
    assert tower.batches == [[100], [0, 1, 2], [3]]


def test_a_tower_that_others_slow_down_gets_no_smaller_batches(make: Make) -> None:
    queue = make(Limits(100, seconds=5.0), warm_up=lambda: [(1, 1, 0.1)])
    queue.wait_until_warm()
    assert queue.count_limit() == 50
    for _ in range(100):
        queue.pace.observe(50, 20.0)
    assert queue.count_limit() == 50


@pytest.mark.parametrize(
    ("limits", "waiting", "batches"),
    [
        (Limits(22, step=4), 3, [3]),
        (Limits(22, step=4), 7, [7]),
        (Limits(22, step=4), 8, [8]),
        (Limits(22, step=4), 11, [8, 3]),
        (Limits(22, step=4), 21, [20, 1]),
        (Limits(22, step=4), 31, [22, 8, 1]),
    ],
    ids=str,
)
def test_a_large_batch_has_a_multiple_of_a_step(
    tower: Tower, make: Make, limits: Limits, waiting: int, batches: list[int]
) -> None:
    queue = make(limits)
    hold(tower, queue)
    futures = [queue.submit(i) for i in range(waiting)]
    tower.free.set()
    assert [f.result(10) for f in futures] == [2 * i for i in range(waiting)]
    assert [len(batch) for batch in tower.batches] == [1, *batches]


def test_an_item_that_alone_takes_too_long_goes_alone(
    tower: Tower, make: Make, clock: Clock
) -> None:
    queue = make(Limits(100, seconds=0.5), run=timed(tower, clock, 3.0))
    hold(tower, queue)
    futures = [queue.submit(i) for i in (1, 2)]
    tower.free.set()
    assert [f.result(10) for f in futures] == [2, 4]
    assert tower.batches == [[100], [1], [2]]


def test_an_items_size_counts_in_what_is_predicted(make: Make) -> None:
    queue = make(size=lambda item: item, warm_up=lambda: [(2, 20, 2.0), (2, 40, 3.0)])
    queue.wait_until_warm()
    assert queue.pace.per_unit == pytest.approx(0.05)
    assert queue.pace.per_batch == pytest.approx(1.0)
    # items of 11 on the average of late, in two batches of four, and a usual batch after them
    own = 0.05 * (0.9 * 20 + 40) / 1.9 + 1.0
    assert queue.predicted_seconds(8) == pytest.approx(8 * 11 * 0.05 + 2 * 1.0 + own)
    # who is alone has a batch of its own
    assert queue.predicted_seconds(0) == pytest.approx(11 * 0.05 + 1.0)


def test_batches_that_end_early_count_in_what_is_predicted(make: Make) -> None:
    queue = make(Limits(100, seconds=0.5), warm_up=lambda: [(1, 1, 0.3), (4, 4, 0.6)])
    queue.wait_until_warm()
    assert queue.count_limit() == 3
    own = queue.pace.seconds(queue.pace.usual_size)
    assert queue.predicted_seconds(9) == pytest.approx(9 * 0.1 + 3 * 0.2 + own)


def test_what_would_be_answered_too_late_is_refused_when_its_turn_comes(
    tower: Tower, reports: Reports, make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make(warm_up=lambda: [(1, 1, 3.0)])  # a batch takes three seconds
    first = hold(tower, queue)
    dues = [12.9, 13.0, 20.0, None, 0.0]
    futures = [
        queue.submit(i) if due is None else queue.submit(i, due=clock.now + due)
        for i, due in enumerate(dues)
    ]
    assert futures[4].cancel()
    monkeypatch.setattr(queue.pace, "observe", lambda size, seconds: None)
    clock.now += 10
    tower.free.set()
    with pytest.raises(Busy, match="the test items before yours took too long"):
        futures[0].result(10)
    assert [f.result(10) for f in futures[1:4]] == [2, 4, 6]
    assert first.result(10) == 200
    assert tower.batches == [[100], [1, 2, 3]]
    assert (reports.refused, reports.gone) == (1, 1)


def test_one_guilty_item_fails_alone(
    tower: Tower, reports: Reports, queue: BatchQueue[int, int]
) -> None:
    hold(tower, queue)
    futures = [queue.submit(i) for i in (1, -1, 2, 3)]
    tower.free.set()
    wait(futures, 10)
    assert [f.result() for f in (futures[0], *futures[2:])] == [2, 4, 6]
    assert isinstance(futures[1].exception(), ValueError)
    assert reports.failures == 1


def test_out_of_memory_lowers_the_limit_for_a_while(
    tower: Tower, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(batching, "monotonic", lambda: now[0])
    queue = make(Limits(8), exhausted=lambda error: isinstance(error, MemoryError))
    hold(tower, queue)
    tower.room = 2
    futures = [queue.submit(i) for i in range(16)]
    tower.free.set()
    assert [f.result(10) for f in futures] == [2 * i for i in range(16)]
    # halved until it fitted, and the second eight were not tried at once
    assert [len(batch) for batch in tower.batches] == [1, 8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 2]
    assert queue.count_limit() == 2
    now[0] += 61
    assert queue.count_limit() == 8


def test_another_error_does_not_lower_the_limit(tower: Tower, make: Make) -> None:
    queue = make(Limits(8), exhausted=lambda error: isinstance(error, MemoryError))
    assert isinstance(queue.submit(-1).exception(10), ValueError)
    assert queue.count_limit() == 8


def test_a_cancelled_item_costs_nothing(
    tower: Tower, reports: Reports, queue: BatchQueue[int, int]
) -> None:
    hold(tower, queue)
    gone, stays = queue.submit(1), queue.submit(2)
    assert gone.cancel()
    tower.free.set()
    assert stays.result(10) == 4
    assert tower.batches == [[100], [2]]
    assert reports.gone == 1


def test_a_queue_of_cancelled_items_only_goes_on(tower: Tower, queue: BatchQueue[int, int]) -> None:
    hold(tower, queue)
    gone = [queue.submit(i) for i in range(6)]
    assert all(future.cancel() for future in gone)
    tower.free.set()
    assert queue.submit(7).result(10) == 14
    assert tower.batches == [[100], [7]]


def test_closing_finishes_what_was_accepted(tower: Tower, queue: BatchQueue[int, int]) -> None:
    hold(tower, queue)
    futures = [queue.submit(i) for i in range(9)]
    tower.free.set()
    queue.close()
    assert [f.result(0) for f in futures] == [2 * i for i in range(9)]


def test_a_closed_queue_takes_nothing(queue: BatchQueue[int, int]) -> None:
    queue.close()
    queue.close()
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit(1)


def test_a_tower_that_loses_answers_fails_its_items_and_lives_on(make: Make) -> None:
    queue = make(run=lambda items: [])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"zip\(\)"):
            queue.submit(1).result(10)


class Gone(BaseException):
    """Ends a thread, as nothing that is caught does."""


def end(items: list[int]) -> list[int]:
    raise Gone("over")


def lose(items: list[int]) -> list[int]:
    raise RuntimeError("lost")


@pytest.mark.parametrize(("run", "says"), [(end, "Gone: over"), (lose, "RuntimeError: lost")])
def test_a_runner_that_dies_hangs_nobody_and_says_so(
    make: Make, run: Callable[[list[int]], list[int]], says: str
) -> None:
    died = threading.Event()
    reasons: list[str] = []

    def on_death(why: str) -> None:
        reasons.append(why)
        died.set()

    held = threading.Event()

    def run_when_free(items: list[int]) -> list[int]:
        assert held.wait(10)
        return run(items)

    queue = make(
        run=run_when_free,
        fatal=lambda error: "lost" in str(error),
        on_death=on_death,
    )
    futures = [queue.submit(i) for i in range(6)]
    assert queue.alive
    held.set()
    for future in futures:  # on the tower, and behind it
        assert isinstance(future.exception(10), NotReady)
    assert died.wait(10)
    assert reasons == [f"the test runner died: {says}"]
    assert not queue.alive
    with pytest.raises(NotReady, match="died"):
        queue.submit(1)


def test_what_was_given_up_before_a_runner_dies_is_told_so_and_the_rest_fails(make: Make) -> None:
    held = threading.Event()

    def run(items: list[int]) -> list[int]:
        assert held.wait(10)
        return lose(items)

    queue = make(Limits(1), run=run, fatal=lambda error: True)
    first, gone, last = (queue.submit(i) for i in range(3))
    assert gone.cancel()
    held.set()
    assert not wait([first, gone, last], 10).not_done
    assert isinstance(first.exception(), NotReady)
    assert isinstance(last.exception(), NotReady)


def test_a_tower_that_hangs_is_given_up_and_nobody_waits_for_it(
    tower: Tower, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "STUCK_SECONDS", 10.0)
    reasons: list[str] = []
    queue = make(on_death=reasons.append)
    queue.tick(100.0)  # nothing is on the tower
    first = hold(tower, queue)
    behind = queue.submit(1)
    closing = threading.Thread(target=queue.close)
    closing.start()
    for _ in range(10):
        queue.tick(1.0)
    assert queue.alive and not first.done() and closing.is_alive()
    queue.tick(1.0)
    for future in (first, behind):
        assert "has not answered for 11 s" in str(future.exception(0))
    assert reasons == ["the test tower has not answered for 11 s"]
    closing.join(10)
    assert not closing.is_alive()
    queue.tick(1.0)
    with pytest.raises(NotReady, match="has not answered"):
        queue.submit(2)
    tower.free.set()  # and when it comes back after all, nothing more happens
    for thread in threading.enumerate():
        if thread.name == "runner-test":
            thread.join(10)
            assert not thread.is_alive()
    assert len(reasons) == 1


def test_a_batch_may_take_many_times_what_was_predicted(
    tower: Tower, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "STUCK_SECONDS", 10.0)
    queue = make(warm_up=lambda: [(1, 1, 3.0)])  # 3 s an item: twenty times that is a minute
    queue.wait_until_warm()
    future = hold(tower, queue)
    for _ in range(60):
        queue.tick(1.0)
    assert queue.alive
    tower.free.set()
    assert future.result(10) == 200
    hold(tower, queue)
    for _ in range(50):  # counted anew
        queue.tick(1.0)
    assert queue.alive


@pytest.fixture
def two(make: Make, lanes: Lanes) -> BatchQueue[int, int]:
    queue = make(Limits(100, lanes=2), run=lanes.run, enter=lanes.enter)
    queue.wait_until_warm()
    return queue


def test_fewer_items_than_lanes_have_all_of_the_tower(
    lanes: Lanes, two: BatchQueue[int, int]
) -> None:
    first = two.submit(1)
    lanes.expect((1, [1]))
    second = two.submit(2)
    assert not second.running()  # it will not share with the first
    lanes.let_go(1)
    lanes.expect((1, [2]))
    lanes.let_go(2)
    assert (first.result(10), second.result(10)) == (2, 4)


def test_as_many_items_as_lanes_are_shared_out(lanes: Lanes, two: BatchQueue[int, int]) -> None:
    futures = [two.submit(1)]
    lanes.expect((1, [1]))
    futures += [two.submit(i) for i in (2, 3, 4, 5)]
    time.sleep(0.05)  # a lane that took some would do so now
    lanes.expect((1, [1]))  # with what has all of the tower, nothing else is there
    lanes.let_go(1)
    lanes.expect((2, [2, 3]), (2, [4, 5]))  # of four, two can be prepared while two are on a lane
    futures.append(two.submit(6))
    lanes.let_go(2)
    lanes.expect((2, [4, 5]), (2, [6]))  # a lane that is free takes what there is
    lanes.let_go(4, 6)
    assert [future.result(10) for future in futures] == [2, 4, 6, 8, 10, 12]
    futures = [two.submit(7)]
    lanes.expect((1, [7]))  # and when all are, a lone item has all of the tower
    futures += [two.submit(i) for i in (8, 9, 10)]
    lanes.let_go(7)
    lanes.expect((2, [8]), (2, [9]))  # what was answered long ago does not count
    lanes.let_go(8, 9)
    lanes.expect((2, [10]))
    lanes.let_go(10)
    assert [future.result(10) for future in futures] == [14, 16, 18, 20]


@pytest.mark.parametrize(
    ("limits", "waiting", "batches"),
    [
        (Limits(32, step=4, lanes=2), 6, [2, 2, 2]),
        (Limits(32, step=4, lanes=2), 21, [7, 7, 7]),
        (Limits(32, step=4, lanes=2), 24, [8, 8, 8]),
        (Limits(32, step=4, lanes=2), 32, [12, 12, 8]),
        (Limits(20, step=4, lanes=2), 60, [10, 10, 10, 10, 10, 10]),  # its share of 20
        (Limits(16, step=4, lanes=4), 64, [8, 8, 8, 8, 8, 8, 8, 8]),  # two steps at least
        (Limits(32, step=4, lanes=4), 40, [8, 8, 8, 8, 8]),
    ],
    ids=str,
)
def test_lanes_share_out_evenly_what_asks_again_when_it_is_answered(
    lanes: Lanes, make: Make, limits: Limits, waiting: int, batches: list[int]
) -> None:
    queue = make(limits, run=lanes.run, enter=lanes.enter)
    first = queue.submit(1000)
    lanes.expect((1, [1000]))
    numbers = iter(range(waiting))
    futures = [queue.submit(i) for i in range(waiting)]
    shared = [[next(numbers) for _ in range(count)] for count in batches]
    lanes.let_go(1000)
    lanes.expect(*((limits.lanes, batch) for batch in shared[: limits.lanes]))
    assert first.result(10) == 2000
    lanes.let_go(0)  # before those that it answers ask again
    lanes.expect(*((limits.lanes, batch) for batch in shared[1 : limits.lanes + 1]))
    for future in futures:
        while not future.done():
            lanes.let_go(*(item for _, batch in lanes.running for item in batch))
            wait([future], 0.01)


def test_a_batch_on_a_lane_counts_as_one_on_each(
    make: Make, lanes: Lanes, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(items: list[int]) -> list[int]:
        results = lanes.run(items)
        clock.now += 0.5 * len(items)
        return results

    limits = Limits(100, seconds=5.0, lanes=2)
    queue = make(limits, run=run, enter=lanes.enter, warm_up=lambda: [(1, 1, 0.25)])
    queue.wait_until_warm()
    assert queue.count_limit() == 10  # of 0.25 s each on all of the tower, and 0.5 s on a lane
    first = queue.submit(0)
    lanes.expect((1, [0]))
    monkeypatch.setattr(queue.pace, "observe", lambda *observed: seen.append(observed))
    seen: list[tuple[float, float]] = []
    futures = [queue.submit(i) for i in range(1, 4)]
    lanes.let_go(0)
    lanes.expect((2, [1]), (2, [2]))
    lanes.let_go(1)
    assert futures[0].result(10) == 2
    lanes.expect((2, [2]), (2, [3]))
    lanes.let_go(2, 3)
    assert [f.result(10) for f in (first, *futures)] == [0, 2, 4, 6]
    assert seen[:2] == [(1, 0.5), (2, 0.5)]
    assert queue._mean_size == pytest.approx(1.0)


def test_what_is_before_one_is_predicted_to_go_on_all_lanes(make: Make) -> None:
    known = [(1, 1, 0.3), (4, 4, 0.6)]  # 0.2 s a batch and 0.1 s an item
    queue = make(Limits(8, lanes=2), warm_up=lambda: known)
    queue.wait_until_warm()
    own = queue.pace.seconds(queue.pace.usual_size)
    assert queue.predicted_seconds(16) == pytest.approx(16 * 0.1 + 2 * 0.2 + own)


def test_closing_finishes_what_was_accepted_on_all_lanes(
    lanes: Lanes, two: BatchQueue[int, int]
) -> None:
    futures = [two.submit(1)]
    lanes.expect((1, [1]))
    futures += [two.submit(i) for i in range(2, 8)]
    closing = threading.Thread(target=two.close)
    closing.start()
    closing.join(0.05)  # now the lanes know
    while closing.is_alive():
        lanes.let_go(*(item for _, batch in lanes.running for item in batch))
        closing.join(0.01)
    assert [future.result(0) for future in futures] == [2 * i for i in range(1, 8)]


def test_a_lane_that_dies_takes_the_others_with_it(
    lanes: Lanes, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    reasons: list[str] = []
    queue = make(Limits(1, lanes=2), run=lanes.run, enter=lanes.enter, on_death=reasons.append)
    first = queue.submit(1)
    lanes.expect((1, [1]))
    futures = [queue.submit(i) for i in (-2, 3, 4, 5)]
    lanes.let_go(1)
    lanes.expect((2, [-2]), (2, [3]))
    assert first.result(10) == 2
    lanes.let_go(-2)
    for future in futures:
        assert isinstance(future.exception(10), NotReady)
    queue.close()
    assert reasons == ["the test runner died: Gone: over"]
    lanes.let_go(3)  # and what it says now, nobody waits for
    with pytest.raises(NotReady, match="died"):
        queue.submit(1)


def test_a_lane_that_hangs_is_given_up_with_the_others(
    lanes: Lanes, two: BatchQueue[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "STUCK_SECONDS", 10.0)
    first = two.submit(1)
    lanes.expect((1, [1]))
    futures = [two.submit(i) for i in (2, 3)]
    lanes.let_go(1)
    lanes.expect((2, [2]), (2, [3]))
    two.tick(6.0)
    lanes.let_go(2)
    assert futures[0].result(10) == 4
    again = two.submit(4)
    lanes.expect((2, [3]), (2, [4]))
    two.tick(6.0)
    assert not two.alive
    for future in (futures[1], again):
        assert "has not answered for 12 s" in str(future.exception(10))
    assert first.result(0) == 2
    lanes.let_go(3, 4)


def test_a_lane_may_take_as_much_longer_as_it_has_less_of_the_tower(
    lanes: Lanes, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [(1, 1, 10.0)]  # 10 s on all of the tower, and given up after twenty times that
    queue = make(Limits(4, lanes=2), run=lanes.run, enter=lanes.enter, warm_up=lambda: known)
    first = queue.submit(1)
    lanes.expect((1, [1]))
    monkeypatch.setattr(queue.pace, "observe", lambda size, seconds: None)
    futures = [queue.submit(i) for i in (2, 3)]
    lanes.let_go(1)
    lanes.expect((2, [2]), (2, [3]))
    queue.tick(390.0)
    assert queue.alive
    lanes.let_go(2, 3)
    assert [future.result(10) for future in (first, *futures)] == [2, 4, 6]


def test_a_thread_that_cannot_enter_lets_nothing_start(make: Make) -> None:
    def refuse(shares: int) -> None:
        raise PermissionError("no priorities here")

    queue = make(enter=refuse)
    with pytest.raises(PermissionError, match="no priorities here"):
        queue.wait_until_warm()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_whatever_happens_every_item_is_answered(make: Make, reports: Reports, count: int) -> None:
    def run(items: list[int]) -> list[int]:
        if len(items) > 5:
            raise MemoryError
        if any(item % 50 == 0 for item in items):
            raise ValueError("of fifty")
        return [2 * item for item in items]

    queue = make(
        Limits(8, step=2, lanes=count),
        run=run,
        exhausted=lambda error: isinstance(error, MemoryError),
    )
    futures: dict[int, Future[int]] = {}

    def submit(start: int) -> None:
        for i in range(start, 2000, 4):
            futures[i] = queue.submit(i)
            if i % 7 == 0:
                futures[i].cancel()

    senders = [threading.Thread(target=submit, args=(start,)) for start in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(30)
    queue.close()
    assert len(futures) == 2000
    for i, future in futures.items():
        assert future.done()
        if future.cancelled():
            assert i % 7 == 0
        elif i % 50 == 0:
            assert isinstance(future.exception(), ValueError)
        else:
            assert future.result() == 2 * i
    assert reports.gone == sum(future.cancelled() for future in futures.values())


def test_a_warm_up_that_fails_is_told_to_who_waits_for_it(make: Make) -> None:
    def fail() -> Iterator[tuple[int, int, float]]:
        raise ValueError("no kernel")
        yield

    queue = make(warm_up=fail)
    with pytest.raises(ValueError, match="no kernel"):
        queue.wait_until_warm()
    with pytest.raises(NotReady, match="did not start: no kernel"):
        queue.submit(1)


def test_the_warm_up_comes_before_all_items(tower: Tower, make: Make) -> None:
    order = []

    def warm() -> Iterator[tuple[int, int, float]]:
        order.append("warm")
        yield 1, 1, 0.1

    def run(items: list[int]) -> list[int]:
        order.append("item")
        return items

    queue = make(run=run, warm_up=warm)
    queue.submit(1).result(10)
    assert order == ["warm", "item"]


def test_pace_learns_a_line() -> None:
    pace = Pace()
    for size in (1, 8, 3, 32, 16, 2):
        pace.observe(size, 0.02 + 0.003 * size)
    assert pace.per_unit == pytest.approx(0.003)
    assert pace.per_batch == pytest.approx(0.02)
    assert pace.seconds(10) == pytest.approx(0.05)
    assert pace.seconds(20, batches=2) == pytest.approx(0.1)


def test_pace_knows_the_best_and_the_usual() -> None:
    pace = Pace()
    assert pace.usual_size == 0
    for size, seconds in ((4, 1.0), (10, 2.0), (10, 8.0)):
        pace.observe(size, seconds)
    assert pace.best == pytest.approx(0.2)
    assert pace.usual_size == pytest.approx((0.81 * 4 + 0.9 * 10 + 10) / 2.71)


def test_pace_forgets_what_was() -> None:
    pace = Pace()
    for _ in range(50):
        pace.observe(4, 1.0)
    for size in (1, 2, 3, 4) * 20:
        pace.observe(size, 0.1 * size)
    assert pace.per_unit == pytest.approx(0.1, rel=0.05)


def test_pace_takes_batches_of_one_size_at_their_mean() -> None:
    pace = Pace()
    for _ in range(5):
        pace.observe(8, 0.4)
    assert pace.seconds(8) == pytest.approx(0.4)
    assert pace.seconds(16) == pytest.approx(0.8)


def test_pace_never_predicts_that_more_work_takes_less_time() -> None:
    pace = Pace()
    for size, seconds in ((1, 2.0), (10, 1.0), (20, 0.5)):
        pace.observe(size, seconds)
    assert pace.per_unit >= 0
    assert pace.per_batch >= 0
    assert pace.seconds(20) >= pace.seconds(1)
