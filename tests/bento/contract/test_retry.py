"""`retry` repeats a failed call after the pauses that its caller chooses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bento.contract.retry import Pause, retry, retry_async


def in_asyncio(call: Callable[[], Any], pause: Pause, sleep: Callable[[float], object]) -> Any:
    async def coroutine() -> Any:
        return call()

    async def sleeping(seconds: float) -> object:
        return sleep(seconds)

    return asyncio.run(retry_async(coroutine, pause, sleeping))


retrying = pytest.mark.parametrize("retry", [retry, in_asyncio], ids=["sync", "async"])


class Calls:
    """A call that fails a number of times, with a `pause` that records its arguments."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.made = 0
        self.asked: list[tuple[str, int, float]] = []
        self.slept: list[float] = []

    def __call__(self) -> str:
        self.made += 1
        if self.made <= self.failures:
            raise ValueError(f"failure {self.made}")
        return "done"

    def pause(self, error: Exception, attempts: int, paused: float) -> float | None:
        self.asked.append((str(error), attempts, paused))
        return None if attempts == 3 else 2.0 * attempts


@retrying
def test_a_call_that_succeeds_is_made_once(retry: Any) -> None:
    calls = Calls(0)
    assert retry(calls, calls.pause, calls.slept.append) == "done"
    assert (calls.made, calls.asked, calls.slept) == (1, [], [])


@retrying
def test_a_failed_call_is_made_again_after_each_pause(retry: Any) -> None:
    calls = Calls(2)
    assert retry(calls, calls.pause, calls.slept.append) == "done"
    assert calls.asked == [("failure 1", 1, 0.0), ("failure 2", 2, 2.0)]
    assert calls.slept == [2.0, 4.0]


@retrying
def test_the_last_error_is_raised_when_pause_gives_up(retry: Any) -> None:
    calls = Calls(9)
    with pytest.raises(ValueError, match="failure 3"):
        retry(calls, calls.pause, calls.slept.append)
    assert calls.asked[-1] == ("failure 3", 3, 6.0)
    assert (calls.made, calls.slept) == (3, [2.0, 4.0])


@retrying
def test_a_true_result_of_sleep_gives_up(retry: Any) -> None:
    calls = Calls(9)
    with pytest.raises(ValueError, match="failure 1"):
        retry(calls, calls.pause, lambda seconds: True)
    assert calls.made == 1


@retrying
def test_an_interrupt_is_not_retried(retry: Any) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    calls = Calls(0)
    with pytest.raises(KeyboardInterrupt):
        retry(interrupted, calls.pause, calls.slept.append)
    assert calls.asked == []
