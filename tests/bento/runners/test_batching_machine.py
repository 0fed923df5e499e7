"""The queue answers every item exactly once, in any order of events."""

from __future__ import annotations

import math
import threading
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bento.contract.errors import Busy, NotReady
from bento.runners.batching import BatchQueue
from bento.runners.policy import Limits
from tests.bento.runners.fakes import Reports

GOOD, BAD, FULL, LATE, LOST = "good", "bad", "full", "late", "lost"


class Lost(Exception):
    """The device is lost."""


class Tower:
    """A tower whose result for an item (number, kind) is the number. It blocks while not `free`."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.answered: list[int] = []

    def run(self, items: list[tuple[int, str]]) -> list[int]:
        assert self.free.wait(10)
        kinds = {kind for _, kind in items}
        if LOST in kinds:
            raise Lost
        if FULL in kinds and len(items) > 1:
            raise MemoryError
        if BAD in kinds:
            raise ValueError("bad")
        numbers = [number for number, _ in items]
        self.answered += numbers
        return numbers


class QueueMachine(RuleBasedStateMachine):
    """Submits items, cancels them, blocks the tower, closes the queue, in any order.

    An item may be good, fail, exceed the memory, miss its deadline, or lose the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tower = Tower()
        self.reports = Reports()
        self.deaths: list[str] = []
        self.sent: list[tuple[str, Future[int]]] = []
        self.cancelled: set[int] = set()
        self.callbacks: list[int] = []
        self.closing: threading.Thread | None = None
        self.queue: BatchQueue[Any, int] = BatchQueue(
            "machine",
            self.tower.run,
            Limits(3),
            self.reports,
            exhausted=lambda error: isinstance(error, MemoryError),
            fatal=lambda error: isinstance(error, Lost),
            on_death=self.deaths.append,
        )

    @rule(kinds=st.lists(st.sampled_from([GOOD] * 6 + [BAD, FULL, LATE]), min_size=1, max_size=8))
    def submit(self, kinds: list[str]) -> None:
        for kind in kinds:
            self._submit(kind)

    @rule()
    def lose_the_device(self) -> None:
        self._submit(LOST)

    def _submit(self, kind: str) -> None:
        number = len(self.sent)
        try:
            future = self.queue.submit((number, kind), deadline=0.0 if kind == LATE else math.inf)
        except NotReady:
            assert not self.queue.alive
        except RuntimeError:
            assert self.closing is not None
        else:
            future.add_done_callback(lambda _: self.callbacks.append(number))
            self.sent.append((kind, future))

    @rule(choice=st.integers(0, 1000))
    def cancel(self, choice: int) -> None:
        if self.sent:
            number = choice % len(self.sent)
            if self.sent[number][1].cancel():
                self.cancelled.add(number)

    @rule()
    def hold_the_tower(self) -> None:
        self.tower.free.clear()

    @rule()
    def free_the_tower(self) -> None:
        self.tower.free.set()

    @rule()
    def wait_for_all(self) -> None:
        self.tower.free.set()
        assert not wait([future for _, future in self.sent], 5).not_done

    @precondition(lambda self: self.closing is None)
    @rule()
    def close(self) -> None:
        self.closing = threading.Thread(target=self.queue.close)
        self.closing.start()
        self.closing.join(0.002)  # so that most later items find a closed queue

    @invariant()
    def no_item_is_answered_twice(self) -> None:
        assert len(self.callbacks) == len(set(self.callbacks))

    def teardown(self) -> None:
        self.wait_for_all()
        if self.closing is None:
            self.close()
        assert self.closing
        self.closing.join(10)
        assert not self.closing.is_alive()
        assert len(self.queue) == 0
        assert sorted(self.callbacks) == list(range(len(self.sent)))
        for number, (kind, future) in enumerate(self.sent):
            self._check(number, kind, future)
        assert len(self.tower.answered) == len(set(self.tower.answered))
        assert sum(self.reports.batches) == len(self.tower.answered)
        answered = [future for _, future in self.sent if not future.cancelled()]
        assert self.reports.shed == sum(isinstance(f.exception(0), Busy) for f in answered)
        if self.queue.alive:
            assert self.deaths == []
        else:
            with pytest.raises(NotReady) as dead:
                self.queue.submit((0, GOOD))
            assert self.deaths == [str(dead.value)]

    def _check(self, number: int, kind: str, future: Future[int]) -> None:
        """Check that the answer of an item suits its kind."""
        try:
            error = future.exception(0)
        except CancelledError:
            assert number in self.cancelled
            assert number not in self.tower.answered
            return
        assert number not in self.cancelled
        if error is None:
            assert kind in (GOOD, FULL)
            assert future.result() == number
        elif isinstance(error, NotReady):
            assert not self.queue.alive
        elif isinstance(error, Busy):
            assert kind == LATE
        else:
            assert kind == BAD
            assert isinstance(error, ValueError)


def test_every_item_is_answered_exactly_once() -> None:
    run_state_machine_as_test(
        QueueMachine,
        settings=hypothesis.settings(
            max_examples=100,
            stateful_step_count=20,
            derandomize=True,
            phases=[hypothesis.Phase.generate],  # shrinking a failure would take minutes
        ),
    )
