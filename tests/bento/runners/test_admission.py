"""The budget for the bytes of requests."""

from __future__ import annotations

import pytest

from bento.contract.errors import Busy
from bento.runners.admission import ByteBudget


def test_bytes_beyond_the_limit_are_rejected() -> None:
    rejections: list[None] = []
    budget = ByteBudget(1000, lambda: rejections.append(None))
    budget.take(400)
    budget.take(600)
    with pytest.raises(
        Busy, match=r"^the service already holds 1,000 bytes of requests, and 1 more "
    ):
        budget.take(1)
    assert (budget.held, len(rejections)) == (1000, 1)
    budget.release(400)
    budget.take(399)
    assert budget.held == 999


def test_held_bytes_are_released_after_an_error() -> None:
    budget = ByteBudget(1000, lambda: None)
    with pytest.raises(KeyError), budget.hold(1000):
        raise KeyError
    assert budget.held == 0
