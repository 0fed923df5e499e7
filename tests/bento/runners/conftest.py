"""Fixtures for the tests of the queue and the runners."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from bento.runners.batching import BatchQueue
from bento.runners.policy import Limits
from bento.runners.timing import Timing
from tests.bento.runners.fakes import Clock, Lanes, Make, Reports, Tower

if TYPE_CHECKING:
    from bento.runners.runners import Runners
    from tests.bento.runners.towers import Towers


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tower() -> Tower:
    return Tower()


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def lanes() -> Lanes:
    return Lanes()


@pytest.fixture
def make(tower: Tower, lanes: Lanes, reports: Reports, clock: Clock) -> Iterator[Make]:
    """Return a function that makes queues, which go by `clock` and are closed at the end."""
    queues: list[BatchQueue[int, int]] = []

    def make_queue(
        limits: Limits | None = None, *, stuck: float = 120.0, **options: Any
    ) -> BatchQueue[int, int]:
        run, timing = options.pop("run", tower.run), Timing(clock=clock, stuck=stuck)
        queue = BatchQueue("test", run, limits or Limits(4), reports, timing=timing, **options)
        queues.append(queue)
        return queue

    yield make_queue
    tower.free.set()
    lanes.stop()
    for queue in queues:
        queue.close()


@pytest.fixture
def queue(make: Make) -> BatchQueue[int, int]:
    return make()


@pytest.fixture
def towers() -> Towers:
    from tests.bento.runners.towers import Towers

    return Towers()


@pytest.fixture
def runners(towers: Towers) -> Iterator[Runners]:
    runners = towers.runners(timing=Timing(probe=0.3))
    yield runners
    for tower in (towers.text, towers.image):
        tower.free.set()
    runners.close()
