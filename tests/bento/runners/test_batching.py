"""The queue: batches grow with load, nobody waits for one to fill, faults stay alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait

import pytest

from bento.contract.errors import Busy, NotReady
from bento.runners import batching
from bento.runners.batching import BatchQueue
from bento.runners.policy import Limits
from tests.bento.runners.fakes import Clock, Gone, Make, Reports, Tower, hold, timed


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
    # an item that waits alone has a batch of its own
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
        queue.submit(i) if due is None else queue.submit(i, deadline=clock.now + due)
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


def test_a_thread_that_cannot_enter_lets_nothing_start(make: Make) -> None:
    def refuse(shares: int) -> None:
        raise PermissionError("no priorities here")

    queue = make(enter=refuse)
    with pytest.raises(PermissionError, match="no priorities here"):
        queue.wait_until_warm()


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
