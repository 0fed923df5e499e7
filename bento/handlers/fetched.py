"""Count the bytes that a request fetches from URLs like the bytes of its body."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from bento.contract.errors import TooLarge

if TYPE_CHECKING:
    from bento.runners.admission import ByteBudget


class Fetched:
    """The number of bytes that one request has fetched, as part of the service's byte budget."""

    def __init__(self, budget: ByteBudget, limit: int) -> None:
        self._budget = budget
        self._limit = limit
        self._held = 0

    def add(self, count: int) -> None:
        """Count bytes until `release`. Raises `TooLarge` or `Busy`."""
        if self._held + count > self._limit:
            raise TooLarge(
                f"the images at the URLs of the request have more than {self._limit:,} bytes in "
                "total, the limit (MAX_REQUEST_BYTES)"
            )
        self._budget.take(count)
        self._held += count

    def release(self) -> None:
        self._budget.release(self._held)
        self._held = 0


fetched: Final[ContextVar[Fetched]] = ContextVar("fetched")  # of the current request
