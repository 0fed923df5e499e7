"""The queue: batches grow with load, nobody waits for one to fill, faults stay alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait

import pytest

from bento.batching import BatchQueue


class Tower:
    """A stand-in for an encoder tower: doubles numbers, can be held, chokes on some."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.free = threading.Event()
        self.free.set()

    def run(self, items: list[int]) -> list[int]:
        self.batches.append(list(items))
        self.started.set()
        assert self.free.wait(10)
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [2 * item for item in items]


@pytest.fixture
def tower() -> Tower:
    return Tower()


@pytest.fixture
def queue(tower: Tower) -> Iterator[BatchQueue[int, int]]:
    queue: BatchQueue[int, int] = BatchQueue("test", tower.run, max_batch_size=4)
    yield queue
    tower.free.set()
    queue.close()


def hold(tower: Tower, queue: BatchQueue[int, int]) -> Future[int]:
    """Occupy the tower with one item until `tower.free` is set."""
    tower.free.clear()
    future = queue.submit(100)
    assert tower.started.wait(10)
    return future


def test_a_lone_item_goes_at_once(tower: Tower, queue: BatchQueue[int, int]) -> None:
    assert queue.submit(21).result(10) == 42
    assert tower.batches == [[21]]


def test_what_waits_goes_together_up_to_the_limit(
    tower: Tower, queue: BatchQueue[int, int]
) -> None:
    first = hold(tower, queue)
    futures = [queue.submit(i) for i in range(6)]
    tower.free.set()
    assert [f.result(10) for f in futures] == [0, 2, 4, 6, 8, 10]
    assert first.result(10) == 200
    assert tower.batches == [[100], [0, 1, 2, 3], [4, 5]]


def test_one_guilty_item_fails_alone(tower: Tower, queue: BatchQueue[int, int]) -> None:
    hold(tower, queue)
    futures = [queue.submit(i) for i in (1, -1, 2, 3)]
    tower.free.set()
    wait(futures, 10)
    assert [f.result() for f in (futures[0], *futures[2:])] == [2, 4, 6]
    assert isinstance(futures[1].exception(), ValueError)


def test_a_cancelled_item_costs_nothing(tower: Tower, queue: BatchQueue[int, int]) -> None:
    hold(tower, queue)
    gone, stays = queue.submit(1), queue.submit(2)
    assert gone.cancel()
    tower.free.set()
    assert stays.result(10) == 4
    assert tower.batches == [[100], [2]]


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


def test_a_tower_that_loses_answers_fails_its_items_and_lives_on() -> None:
    queue: BatchQueue[int, int] = BatchQueue("lossy", lambda items: [], max_batch_size=4)
    try:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"zip\(\)"):
                queue.submit(1).result(10)
    finally:
        queue.close()
