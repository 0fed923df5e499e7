"""Retry a failed call after a pause."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

R = TypeVar("R")

# Takes the error, the number of attempts so far and the total seconds of all pauses so far.
# Returns the seconds to pause before the next attempt, or None to give up.
Pause = Callable[[Exception, int, float], float | None]


def retry(call: Callable[[], R], pause: Pause, sleep: Callable[[float], object]) -> R:
    """Repeat a call until it succeeds, and return its result.

    Raises the error of the last attempt when `pause` gives up, or when `sleep` returns true.
    """
    attempts, paused = 0, 0.0
    while True:
        attempts += 1
        try:
            return call()
        except Exception as error:
            seconds = pause(error, attempts, paused)
            if seconds is None or sleep(seconds):
                raise
        paused += seconds


async def retry_async(
    call: Callable[[], Awaitable[R]], pause: Pause, sleep: Callable[[float], Awaitable[object]]
) -> R:
    """Do the same as `retry` for a coroutine function."""
    attempts, paused = 0, 0.0
    while True:
        attempts += 1
        try:
            return await call()
        except Exception as error:
            seconds = pause(error, attempts, paused)
            if seconds is None or await sleep(seconds):
                raise
        paused += seconds
