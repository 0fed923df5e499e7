"""Admission control by bytes: of all requests at work, and of what one request may fetch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from bento.contract.errors import Busy, TooLarge


class ByteBudget:
    """Counts the bytes that are being received and that wait in queues. Not thread-safe."""

    def __init__(self, limit: int, refused: Callable[[], None]) -> None:
        self.limit = limit
        self.held = 0
        self._refused = refused  # called for each rejection

    def take(self, count: int) -> None:
        """Add bytes until `release`. Raises `Busy` if they would exceed the limit."""
        if self.held + count > self.limit:
            self._refused()
            raise Busy(
                f"{self.held:,} bytes of requests are being worked on; with {count:,} more they "
                f"would be over the limit of {self.limit:,}: try again later",
            )
        self.held += count

    def release(self, count: int) -> None:
        self.held -= count

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Add bytes until the block ends. Raises `Busy` if they would exceed the limit."""
        self.take(count)
        try:
            yield
        finally:
            self.release(count)


class Fetched:
    """Counts the bytes that one request has fetched by URL, as if they were in its body."""

    def __init__(self, budget: ByteBudget, limit: int) -> None:
        self._budget = budget
        self._limit = limit
        self._held = 0

    def add(self, count: int) -> None:
        """Add bytes until `release`.

        Raises `TooLarge` if the request exceeds its limit, `Busy` if all requests exceed theirs.
        """
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


fetched: Final[ContextVar[Fetched]] = ContextVar("fetched")  # of the current request
