"""The queue of a tower with several lanes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from functools import partial

import pytest

from bento.contract.errors import NotReady
from bento.runners.batching import BatchQueue
from bento.runners.policy import Limits
from tests.bento.runners.fakes import Clock, Lanes, Make, Reports


@pytest.fixture
def two(make: Make, lanes: Lanes) -> BatchQueue[int, int]:
    """Return a queue with two lanes whose batches hang after 10 s."""
    queue = make(Limits(100, lanes=2), run=lanes.run, run_part=lanes.part(2), stuck=10.0)
    queue.wait_until_warm()
    return queue


def test_fewer_items_than_lanes_run_on_the_whole_tower(
    lanes: Lanes, two: BatchQueue[int, int]
) -> None:
    first = two.submit(1)
    lanes.expect((1, [1]))
    second = two.submit(2)
    assert not second.running()  # it does not share the tower with the first
    lanes.finish(1)
    lanes.expect((1, [2]))
    lanes.finish(2)
    assert (first.result(10), second.result(10)) == (2, 4)


def test_as_many_items_as_lanes_run_on_all_lanes(lanes: Lanes, two: BatchQueue[int, int]) -> None:
    futures = [two.submit(1)]
    lanes.expect((1, [1]))
    futures += [two.submit(i) for i in (2, 3, 4, 5)]
    time.sleep(0.05)  # time for a lane to take items, if it would
    lanes.expect((1, [1]))  # a batch on the whole tower runs alone
    lanes.finish(1)
    lanes.expect((2, [2, 3]), (2, [4, 5]))
    futures.append(two.submit(6))
    lanes.finish(2)
    lanes.expect((2, [4, 5]), (2, [6]))  # a free lane takes the only waiting item
    lanes.finish(4, 6)
    assert [future.result(10) for future in futures] == [2, 4, 6, 8, 10, 12]
    futures = [two.submit(7)]
    lanes.expect((1, [7]))  # if all lanes are free, a single item uses the whole tower
    futures += [two.submit(i) for i in (8, 9, 10)]
    lanes.finish(7)
    lanes.expect((2, [8]), (2, [9]))  # a lane does not count items that it answered long ago
    lanes.finish(8, 9)
    lanes.expect((2, [10]))
    lanes.finish(10)
    assert [future.result(10) for future in futures] == [14, 16, 18, 20]


@pytest.mark.parametrize(
    ("limits", "waiting", "batches"),
    [
        (Limits(32, step=4, lanes=2), 6, [2, 2, 2]),
        (Limits(32, step=4, lanes=2), 21, [7, 7, 7]),
        (Limits(32, step=4, lanes=2), 24, [8, 8, 8]),
        (Limits(32, step=4, lanes=2), 32, [12, 12, 8]),
        (Limits(20, step=4, lanes=2), 60, [10, 10, 10, 10, 10, 10]),  # an equal share of 20
        (Limits(16, step=4, lanes=4), 64, [8, 8, 8, 8, 8, 8, 8, 8]),  # at least two steps
        (Limits(32, step=4, lanes=4), 40, [8, 8, 8, 8, 8]),
    ],
    ids=str,
)
def test_lanes_take_equal_shares_of_a_closed_loop(
    lanes: Lanes, make: Make, limits: Limits, waiting: int, batches: list[int]
) -> None:
    queue = make(limits, run=lanes.run, run_part=lanes.part(limits.lanes))
    first = queue.submit(1000)
    lanes.expect((1, [1000]))
    numbers = iter(range(waiting))
    futures = [queue.submit(i) for i in range(waiting)]
    shared = [[next(numbers) for _ in range(count)] for count in batches]
    lanes.finish(1000)
    lanes.expect(*((limits.lanes, batch) for batch in shared[: limits.lanes]))
    assert first.result(10) == 2000
    lanes.finish(0)  # the clients of this batch have not resubmitted yet
    lanes.expect(*((limits.lanes, batch) for batch in shared[1 : limits.lanes + 1]))
    for future in futures:
        while not future.done():
            lanes.finish(*(item for _, batch in lanes.running for item in batch))
            wait([future], 0.01)


def test_the_pace_counts_a_per_core_batch_once_per_lane(
    make: Make, lanes: Lanes, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(items: list[int], shares: int = 1) -> list[int]:
        results = lanes.run(items, shares)
        clock.now += 0.5 * len(items)
        return results

    limits = Limits(100, seconds=5.0, lanes=2)
    part = partial(run, shares=2)
    queue = make(limits, run=run, run_part=part, warm_up=lambda: [(1, 1, 0.25)])
    queue.wait_until_warm()
    assert queue.count_limit() == 10  # an item takes 0.25 s on the whole tower, 0.5 s on a lane
    first = queue.submit(0)
    lanes.expect((1, [0]))
    monkeypatch.setattr(queue.pace, "observe", lambda *observed: seen.append(observed))
    seen: list[tuple[float, float]] = []
    futures = [queue.submit(i) for i in range(1, 4)]
    lanes.finish(0)
    lanes.expect((2, [1]), (2, [2]))
    lanes.finish(1)
    assert futures[0].result(10) == 2
    lanes.expect((2, [2]), (2, [3]))
    lanes.finish(2, 3)
    assert [f.result(10) for f in (first, *futures)] == [0, 2, 4, 6]
    assert seen[:2] == [(1, 0.5), (2, 0.5)]
    assert queue.predicted_seconds(20) == pytest.approx(20 * 0.25 + 0.25)  # the mean size is 1


def test_predictions_count_on_all_lanes(make: Make) -> None:
    warm = [(1, 1, 0.3), (4, 4, 0.6)]  # 0.2 s per batch and 0.1 s per item
    queue = make(Limits(8, lanes=2), warm_up=lambda: warm)
    queue.wait_until_warm()
    own = queue.pace.seconds(queue.pace.usual_size)
    assert queue.predicted_seconds(16) == pytest.approx(16 * 0.1 + 2 * 0.2 + own)


def test_closing_drains_all_lanes(lanes: Lanes, two: BatchQueue[int, int]) -> None:
    futures = [two.submit(1)]
    lanes.expect((1, [1]))
    futures += [two.submit(i) for i in range(2, 8)]
    closing = threading.Thread(target=two.close)
    closing.start()
    closing.join(0.05)  # time for `close` to wake the lanes
    while closing.is_alive():
        lanes.finish(*(item for _, batch in lanes.running for item in batch))
        closing.join(0.01)
    assert [future.result(0) for future in futures] == [2 * i for i in range(1, 8)]


def test_all_lanes_end_if_one_dies(lanes: Lanes, make: Make) -> None:
    reasons: list[str] = []
    queue = make(Limits(1, lanes=2), run=lanes.run, run_part=lanes.part(2), on_death=reasons.append)
    first = queue.submit(1)
    lanes.expect((1, [1]))
    futures = [queue.submit(i) for i in (-2, 3, 4, 5)]
    lanes.finish(1)
    lanes.expect((2, [-2]), (2, [3]))
    assert first.result(10) == 2
    lanes.finish(-2)
    for future in futures:
        assert isinstance(future.exception(10), NotReady)
    queue.close()
    assert reasons == ["the test runner died: ThreadEnd: over"]
    lanes.finish(3)  # this result is ignored
    with pytest.raises(NotReady):
        queue.submit(1)


def test_all_lanes_end_if_one_hangs(lanes: Lanes, two: BatchQueue[int, int]) -> None:
    first = two.submit(1)
    lanes.expect((1, [1]))
    futures = [two.submit(i) for i in (2, 3)]
    lanes.finish(1)
    lanes.expect((2, [2]), (2, [3]))
    two.tick(6.0)
    lanes.finish(2)
    assert futures[0].result(10) == 4
    again = two.submit(4)
    lanes.expect((2, [3]), (2, [4]))
    two.tick(6.0)
    assert not two.alive
    for future in (futures[1], again):
        assert isinstance(future.exception(10), NotReady)
    assert first.result(0) == 2
    lanes.finish(3, 4)


def test_a_lane_hangs_later_than_the_whole_tower(
    lanes: Lanes, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = [(1, 1, 10.0)]  # an item hangs after 200 s on the whole tower, 400 s on one of two lanes
    queue = make(Limits(4, lanes=2), run=lanes.run, run_part=lanes.part(2), warm_up=lambda: warm)
    first = queue.submit(1)
    lanes.expect((1, [1]))
    monkeypatch.setattr(queue.pace, "observe", lambda size, seconds: None)
    futures = [queue.submit(i) for i in (2, 3)]
    lanes.finish(1)
    lanes.expect((2, [2]), (2, [3]))
    queue.tick(390.0)
    assert queue.alive
    lanes.finish(2, 3)
    assert [future.result(10) for future in (first, *futures)] == [2, 4, 6]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_item_of_concurrent_clients_is_answered(
    make: Make, reports: Reports, count: int
) -> None:
    def run(items: list[int]) -> list[int]:
        if len(items) > 5:
            raise MemoryError
        if any(item % 50 == 0 for item in items):
            raise ValueError("a multiple of 50")
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
    assert reports.cancelled == sum(future.cancelled() for future in futures.values())
