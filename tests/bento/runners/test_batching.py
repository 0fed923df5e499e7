"""The queue: batches grow with the load, and a faulty item fails alone."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait

import pytest

from bento.contract.errors import Busy, NotReady
from bento.runners.batching import BatchQueue
from bento.runners.policy import Limits
from tests.bento.runners.fakes import Clock, Make, Reports, ThreadEnd, Tower, occupy, timed


def test_a_single_item_runs_at_once(
    tower: Tower, reports: Reports, queue: BatchQueue[int, int]
) -> None:
    assert queue.submit(21).result(10) == 42
    assert tower.batches == [[21]]
    assert reports.batches == [1]
    assert len(reports.waits) == 1


def test_waiting_items_run_together_up_to_the_limit(
    tower: Tower, queue: BatchQueue[int, int]
) -> None:
    first = occupy(tower, queue)
    futures = [queue.submit(i) for i in range(6)]
    tower.free.set()
    assert [f.result(10) for f in futures] == [0, 2, 4, 6, 8, 10]
    assert first.result(10) == 200
    assert tower.batches == [[100], [0, 1, 2, 3], [4, 5]]


def test_a_batch_stays_within_its_time_limit(tower: Tower, make: Make, clock: Clock) -> None:
    warm = [(1, 1, 3.0), (4, 4, 6.0)]
    queue = make(Limits(100, seconds=5.0), run=timed(tower, clock, 1.5), warm_up=lambda: warm)
    occupy(tower, queue)
    futures = [queue.submit(i) for i in range(4)]
    tower.free.set()
    assert [f.result(10) for f in futures] == [0, 2, 4, 6]
    assert tower.batches == [[100], [0, 1, 2], [3]]


def test_a_slower_pace_does_not_lower_the_limit(make: Make) -> None:
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
    occupy(tower, queue)
    futures = [queue.submit(i) for i in range(waiting)]
    tower.free.set()
    assert [f.result(10) for f in futures] == [2 * i for i in range(waiting)]
    assert [len(batch) for batch in tower.batches] == [1, *batches]


def test_an_item_that_exceeds_the_time_limit_runs_alone(
    tower: Tower, make: Make, clock: Clock
) -> None:
    queue = make(Limits(100, seconds=0.5), run=timed(tower, clock, 3.0))
    occupy(tower, queue)
    futures = [queue.submit(i) for i in (1, 2)]
    tower.free.set()
    assert [f.result(10) for f in futures] == [2, 4]
    assert tower.batches == [[100], [1], [2]]


def test_predictions_depend_on_the_size_of_the_items(make: Make) -> None:
    queue = make(size=lambda item: item, warm_up=lambda: [(2, 20, 2.0), (2, 40, 3.0)])
    queue.wait_until_warm()
    assert queue.pace.per_unit == pytest.approx(0.05)
    assert queue.pace.per_batch == pytest.approx(1.0)
    # the mean size of an item is 11: two batches of four items, then a batch of the usual size
    own = 0.05 * (0.9 * 20 + 40) / 1.9 + 1.0
    assert queue.predicted_seconds(8) == pytest.approx(8 * 11 * 0.05 + 2 * 1.0 + own)
    # an item that finds an empty queue has a batch of its own
    assert queue.predicted_seconds(0) == pytest.approx(11 * 0.05 + 1.0)


def test_predictions_depend_on_the_time_limit_of_a_batch(make: Make) -> None:
    queue = make(Limits(100, seconds=0.5), warm_up=lambda: [(1, 1, 0.3), (4, 4, 0.6)])
    queue.wait_until_warm()
    assert queue.count_limit() == 3
    own = queue.pace.seconds(queue.pace.usual_size)
    assert queue.predicted_seconds(9) == pytest.approx(9 * 0.1 + 3 * 0.2 + own)


def test_items_that_would_miss_their_deadline_are_shed(
    tower: Tower, reports: Reports, make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make(warm_up=lambda: [(1, 1, 3.0)])  # a batch takes 3 s
    first = occupy(tower, queue)
    seconds = [12.9, 13.0, 20.0, math.inf, 0.0]
    futures = [queue.submit(i, deadline=clock.now + left) for i, left in enumerate(seconds)]
    assert futures[4].cancel()
    monkeypatch.setattr(queue.pace, "observe", lambda size, seconds: None)
    clock.now += 10
    tower.free.set()
    with pytest.raises(Busy, match=r"^the test queue cannot answer within MAX_QUEUE_MS: try again"):
        futures[0].result(10)
    assert [f.result(10) for f in futures[1:4]] == [2, 4, 6]
    assert first.result(10) == 200
    assert tower.batches == [[100], [1, 2, 3]]
    assert (reports.shed, reports.cancelled) == (1, 1)


def test_a_faulty_item_fails_alone(
    tower: Tower, reports: Reports, queue: BatchQueue[int, int]
) -> None:
    occupy(tower, queue)
    futures = [queue.submit(i) for i in (1, -1, 2, 3)]
    tower.free.set()
    wait(futures, 10)
    assert [f.result() for f in (futures[0], *futures[2:])] == [2, 4, 6]
    assert isinstance(futures[1].exception(), ValueError)
    assert reports.failures == 1


def test_out_of_memory_lowers_the_limit_for_60_s(
    tower: Tower, make: Make, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make(Limits(8), exhausted=lambda error: isinstance(error, MemoryError))
    occupy(tower, queue)
    tower.room = 2
    futures = [queue.submit(i) for i in range(16)]
    tower.free.set()
    assert [f.result(10) for f in futures] == [2 * i for i in range(16)]
    # the first eight are halved until they fit; the second eight run at the lowered limit
    assert [len(batch) for batch in tower.batches] == [1, 8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 2]
    assert queue.count_limit() == 2
    assert (
        "the device ran out of memory on a batch of 8 in the test queue: "
        "the limit is 4 for the next 60 s"
    ) in caplog.text
    clock.now += 61
    assert queue.count_limit() == 8


def test_another_error_does_not_lower_the_limit(tower: Tower, make: Make) -> None:
    queue = make(Limits(8), exhausted=lambda error: isinstance(error, MemoryError))
    assert isinstance(queue.submit(-1).exception(10), ValueError)
    assert queue.count_limit() == 8


def test_a_cancelled_item_does_not_run(
    tower: Tower, reports: Reports, queue: BatchQueue[int, int]
) -> None:
    occupy(tower, queue)
    cancelled, other = queue.submit(1), queue.submit(2)
    assert cancelled.cancel()
    tower.free.set()
    assert other.result(10) == 4
    assert tower.batches == [[100], [2]]
    assert reports.cancelled == 1


def test_the_queue_goes_on_after_all_its_items_were_cancelled(
    tower: Tower, queue: BatchQueue[int, int]
) -> None:
    occupy(tower, queue)
    futures = [queue.submit(i) for i in range(6)]
    assert all(future.cancel() for future in futures)
    tower.free.set()
    assert queue.submit(7).result(10) == 14
    assert tower.batches == [[100], [7]]


def test_closing_drains_the_queue(tower: Tower, queue: BatchQueue[int, int]) -> None:
    occupy(tower, queue)
    futures = [queue.submit(i) for i in range(9)]
    tower.free.set()
    queue.close()
    assert [f.result(0) for f in futures] == [2 * i for i in range(9)]


def test_a_closed_queue_accepts_no_items(queue: BatchQueue[int, int]) -> None:
    queue.close()
    queue.close()
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit(1)


def test_items_without_a_result_fail_and_the_queue_goes_on(make: Make) -> None:
    queue = make(run=lambda items: [])
    for _ in range(2):
        assert isinstance(queue.submit(1).exception(10), ValueError)


def end_thread(items: list[int]) -> list[int]:
    raise ThreadEnd("over")


def lose_device(items: list[int]) -> list[int]:
    raise RuntimeError("lost")


@pytest.mark.parametrize(
    ("run", "error"), [(end_thread, "ThreadEnd: over"), (lose_device, "RuntimeError: lost")]
)
def test_all_items_fail_if_the_thread_of_a_queue_dies(
    make: Make, run: Callable[[list[int]], list[int]], error: str
) -> None:
    died = threading.Event()
    reasons: list[str] = []

    def on_death(why: str) -> None:
        reasons.append(why)
        died.set()

    free = threading.Event()

    def run_when_free(items: list[int]) -> list[int]:
        assert free.wait(10)
        return run(items)

    queue = make(
        run=run_when_free,
        fatal=lambda error: "lost" in str(error),
        on_death=on_death,
    )
    futures = [queue.submit(i) for i in range(6)]
    assert queue.alive
    free.set()
    for future in futures:  # those that run, and those that wait
        assert isinstance(future.exception(10), NotReady)
    assert died.wait(10)
    assert reasons == [f"the test runner died: {error}"]
    assert not queue.alive
    with pytest.raises(NotReady):
        queue.submit(1)


def test_a_cancelled_item_stays_cancelled_if_the_queue_dies(make: Make) -> None:
    free = threading.Event()

    def run(items: list[int]) -> list[int]:
        assert free.wait(10)
        return lose_device(items)

    queue = make(Limits(1), run=run, fatal=lambda error: True)
    first, cancelled, last = (queue.submit(i) for i in range(3))
    assert cancelled.cancel()
    free.set()
    assert not wait([first, cancelled, last], 10).not_done
    assert cancelled.cancelled()
    assert isinstance(first.exception(), NotReady)
    assert isinstance(last.exception(), NotReady)


def test_all_items_fail_if_the_tower_hangs(tower: Tower, make: Make) -> None:
    reasons: list[str] = []
    queue = make(stuck=10.0, on_death=reasons.append)
    queue.tick(100.0)  # no batch runs
    first = occupy(tower, queue)
    behind = queue.submit(1)
    closing = threading.Thread(target=queue.close)
    closing.start()
    for _ in range(10):
        queue.tick(1.0)
    assert queue.alive
    assert not first.done()
    assert closing.is_alive()
    queue.tick(1.0)
    for future in (first, behind):
        assert isinstance(future.exception(0), NotReady)
    assert reasons == ["the test tower has not answered for 11 s"]
    closing.join(10)
    assert not closing.is_alive()
    queue.tick(1.0)
    with pytest.raises(NotReady):
        queue.submit(2)
    tower.free.set()  # a result that comes now is ignored
    for thread in threading.enumerate():
        if thread.name == "runner-test":
            thread.join(10)
            assert not thread.is_alive()
    assert len(reasons) == 1


def test_the_watchdog_allows_many_times_the_predicted_time(
    tower: Tower, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make(stuck=10.0, warm_up=lambda: [(1, 1, 3.0)])  # an item hangs after 20 * 3 s = 60 s
    queue.wait_until_warm()
    monkeypatch.setattr(queue.pace, "observe", lambda size, seconds: None)
    future = occupy(tower, queue)
    for _ in range(60):
        queue.tick(1.0)
    assert queue.alive
    tower.free.set()
    assert future.result(10) == 200
    occupy(tower, queue)
    for _ in range(50):  # the count starts again with each batch
        queue.tick(1.0)
    assert queue.alive


def test_a_queue_does_not_start_if_enter_fails(make: Make) -> None:
    def enter() -> None:
        raise PermissionError

    queue = make(enter=enter)
    with pytest.raises(PermissionError):
        queue.wait_until_warm()


def test_a_queue_does_not_start_if_its_warm_up_fails(make: Make) -> None:
    def fail() -> Iterator[tuple[int, int, float]]:
        raise ValueError("no kernel")
        yield

    queue = make(warm_up=fail)
    with pytest.raises(ValueError, match="no kernel"):
        queue.wait_until_warm()
    with pytest.raises(NotReady, match=r"^the test runner did not start: no kernel$"):
        queue.submit(1)


def test_the_warm_up_runs_before_the_first_item(make: Make) -> None:
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
