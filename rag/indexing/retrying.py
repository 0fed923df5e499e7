"""Retry calls to a backend while the service or its store is busy or unreachable."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from bento.contract.errors import VisionError
from bento.contract.retry import retry

PATIENCE: Final = 60.0  # seconds: a call fails after pauses of this total
_LONGEST_PAUSE: Final = 15.0  # seconds
_PICTURES_FAULT: Final = frozenset({400, 413, 415, 422})  # a picture with these statuses is bad
# Codes of failures that may pass within a minute.
_PASSING: Final = frozenset(
    {"not_ready", "unreachable", "connection_cut", "timeout", "store_unavailable"}
)

R = TypeVar("R")
Sleep = Callable[[float], object]


def patiently(call: Callable[[], R], *, sleep: Sleep = time.sleep) -> R:
    """Make a call, and retry it with exponential backoff while the failure may pass.

    Retries for about a minute. If `sleep` returns true, gives up at once.
    """
    return retry(call, _pause, sleep)


def attempt(call: Callable[[], R], sleep: Sleep) -> R | VisionError:
    """Call `patiently`, but return an error that concerns only the given pictures."""
    try:
        return patiently(call, sleep=sleep)
    except VisionError as error:
        if error.status not in _PICTURES_FAULT:
            raise
        return error


def _pause(error: Exception, attempts: int, paused: float) -> float | None:
    if not isinstance(error, VisionError) or paused >= PATIENCE:
        return None
    if error.status != 429 and error.code not in _PASSING:
        return None
    return min(max(error.retry_after or 0.0, 2.0 ** (attempts - 1)), _LONGEST_PAUSE)
