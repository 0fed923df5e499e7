"""The budget for the bytes of requests, and the claims of requests on it."""

from __future__ import annotations

import pytest

from bento.contract.errors import Busy, TooLarge
from bento.runners.admission import ByteBudget


def test_bytes_beyond_the_limit_are_rejected() -> None:
    rejections: list[None] = []
    budget = ByteBudget(1000, lambda: rejections.append(None))
    with budget.claim() as one:
        one.take(400)
        with budget.claim() as other:
            other.take(600)
            with pytest.raises(
                Busy, match=r"^the service already holds 1,000 bytes of requests, and 1 more "
            ):
                other.take(1)
        assert (budget.held, len(rejections)) == (400, 1)
    assert budget.held == 0


def test_bytes_are_released_after_an_error() -> None:
    budget = ByteBudget(1000, lambda: None)

    def fail() -> None:
        with budget.claim() as claim:
            claim.take(1000)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert budget.held == 0


def test_bytes_are_held_until_the_last_thread_of_the_request_ends() -> None:
    budget = ByteBudget(1000, lambda: None)
    with budget.claim() as request:
        request.take(300)
        with budget.claim() as part:
            part.take(20)
            part.keep()
        assert (part.gone, request.gone) == (True, False)
    assert (budget.held, request.gone) == (320, True)
    part.drop()
    assert budget.held == 0


def test_an_answer_counts_even_beyond_the_limit() -> None:
    budget = ByteBudget(10, lambda: None)
    with budget.claim() as claim:
        claim.add(50)
        assert budget.held == 50
        with pytest.raises(Busy):
            claim.take(1)
    assert budget.held == 0


def test_bytes_from_urls_have_a_limit_of_their_own_for_the_whole_request() -> None:
    budget = ByteBudget(1000, lambda: None)
    with budget.claim(), budget.claim() as part:
        part.take_fetched(60, 100)
        with budget.claim() as other, pytest.raises(TooLarge, match="more than 100 bytes in total"):
            other.take_fetched(41, 100)
        assert budget.held == 60
