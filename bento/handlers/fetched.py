"""The bytes that one request has fetched, counted as if they had come in its body."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from bento.contract.errors import TooLarge

if TYPE_CHECKING:
    from bento.runners.admission import ByteBudget


class Fetched:
    """Counts what one request points to and has fetched, within the budget of the service."""

    def __init__(self, budget: ByteBudget, limit: int) -> None:
        self._budget = budget
        self._limit = limit
        self._held = 0

    def add(self, count: int) -> None:
        """Count bytes in until `release`. Raises `TooLarge` or `Busy`."""
        if self._held + count > self._limit:
            raise TooLarge(
                f"the images that the request points to have more than {self._limit:,} bytes "
                "together, the limit of this service"
            )
        self._budget.take(count)
        self._held += count

    def release(self) -> None:
        self._budget.release(self._held)
        self._held = 0


fetched: Final[ContextVar[Fetched]] = ContextVar("fetched")  # of the request at hand
