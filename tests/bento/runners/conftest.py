"""Fixtures for the tests of the queue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bento.runners import batching
from bento.runners.batching import BatchQueue
from bento.runners.policy import Limits
from tests.bento.runners.fakes import Clock, Lanes, Make, Reports, Tower


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
