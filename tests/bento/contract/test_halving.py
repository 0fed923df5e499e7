"""`Halving` retries a failed batch in halves, in order, down to single items."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento.contract.halving import Halving


def tried(items: Sequence[int], limit: int, bad: int | None = None) -> list[list[int]]:
    """Return the parts that `Halving` yields if parts above `limit` or with `bad` fail."""
    seen = []
    for part in (parts := Halving(items)):
        seen.append(list(part))
        if len(part) > limit or bad in part:
            parts.halve()
    return seen


def test_a_batch_that_succeeds_is_one_part() -> None:
    assert tried([1, 2, 3], limit=3) == [[1, 2, 3]]


def test_an_empty_batch_has_no_parts() -> None:
    assert tried([], limit=3) == []


def test_the_halves_of_a_failed_part_come_before_the_rest() -> None:
    assert tried([1, 2, 3, 4, 5], limit=2) == [[1, 2, 3, 4, 5], [1, 2], [3, 4, 5], [3], [4, 5]]


def test_a_bad_item_ends_up_in_a_part_of_its_own() -> None:
    assert tried([1, 2, 3, 4], limit=4, bad=3) == [[1, 2, 3, 4], [1, 2], [3, 4], [3], [4]]


def test_a_single_item_cannot_be_halved() -> None:
    parts = Halving([1])
    assert next(parts) == [1]
    assert not parts.halve()
    assert list(parts) == []


def test_a_part_is_halved_only_once() -> None:
    parts = Halving([1, 2])
    assert not parts.halve()  # there is no current part yet
    assert next(parts) == [1, 2]
    assert parts.halve()
    assert not parts.halve()
    assert list(parts) == [[1], [2]]


@pytest.mark.parametrize("items", [range(3), np.arange(3)], ids=["range", "array"])
def test_any_sequence_can_be_halved(items: Any) -> None:
    parts = Halving[int](items)
    next(parts)
    assert parts.halve()
    assert [list(part) for part in parts] == [[0], [1, 2]]


def test_a_caller_may_await_between_the_parts() -> None:
    async def answer(items: list[int]) -> list[int]:
        answers: list[int] = []
        for part in (parts := Halving(items)):
            await asyncio.sleep(0)
            if len(part) > 1:
                assert parts.halve()
            else:
                answers += part
        return answers

    assert asyncio.run(answer([3, 1, 2])) == [3, 1, 2]


@given(st.lists(st.integers(), max_size=40), st.integers(1, 10))
def test_every_item_succeeds_exactly_once_and_in_order(items: list[int], limit: int) -> None:
    seen = tried(items, limit)
    assert [item for part in seen if len(part) <= limit for item in part] == items


def test_the_error_of_a_single_item_reaches_the_caller() -> None:
    def run() -> None:
        for part in (parts := Halving([1, 2, 3])):
            try:
                if 3 in part:
                    raise ValueError(f"bad {part[0]}")
            except ValueError:
                if not parts.halve():
                    raise

    with pytest.raises(ValueError, match="bad 3"):
        run()
