"""The queue under any order of events: every item is answered exactly once."""

from __future__ import annotations

import math
import threading
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import hypothesis
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

GOOD, BAD, FULL, LATE, LOST = "good", "bad", "full", "late", "lost"


class Lost(Exception):
    """Says that the device is gone."""


class Observer:
    """Counts what the queue says of its items."""

    def __init__(self) -> None:
        self.ran_items = self.gone = self.refused = self.failures = 0

    def waited(self, seconds: float) -> None:
        assert seconds >= 0

    def ran(self, count: int, seconds: float) -> None:
        self.ran_items += count

    def dropped(self) -> None:
        self.gone += 1

    def late(self) -> None:
        self.refused += 1

    def failed(self) -> None:
        self.failures += 1


class Tower:
    """Answers (number, kind) with its number; runs a batch only when it is let go."""

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
    """Submits, cancels, comes late, holds the tower, closes; it fails, is full, is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Tower()
        self.observer = Observer()
        self.deaths: list[str] = []
        self.sent: list[tuple[str, Future[int]]] = []
        self.cancelled: set[int] = set()
        self.callbacks: list[int] = []
        self.closing: threading.Thread | None = None
        self.queue: BatchQueue[Any, int] = BatchQueue(
            "machine",
            self.tower.run,
            Limits(3),
            self.observer,
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
        while not self.queue._closing:  # it is set at once, whatever the tower does
            pass

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
        assert self.observer.ran_items == len(self.tower.answered)
        told = [future for _, future in self.sent if not future.cancelled()]
        late = sum(isinstance(future.exception(0), Busy) for future in told)
        assert self.observer.refused == late
        assert self.deaths == ([] if self.queue.alive else [self.queue._death])

    def _check(self, number: int, kind: str, future: Future[int]) -> None:
        """What became of an item is what could become of its kind."""
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
            assert kind == BAD and isinstance(error, ValueError)


def test_every_item_is_answered_exactly_once_whatever_happens() -> None:
    run_state_machine_as_test(
        QueueMachine,
        settings=hypothesis.settings(
            max_examples=100,
            stateful_step_count=20,
            derandomize=True,
            phases=[hypothesis.Phase.generate],  # to make a failure smaller would take minutes
        ),
    )
