"""Limit the bytes of requests that this process holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bento.contract.errors import Busy


class ByteBudget:
    """Counts the bytes that are being received or wait in queues. Not thread-safe.

    Args:
        limit: the most bytes at a time.
        rejected: called for each rejection.
    """

    def __init__(self, limit: int, rejected: Callable[[], None]) -> None:
        self.limit = limit
        self.held = 0
        self._rejected = rejected

    def take(self, count: int) -> None:
        """Add bytes until `release`. Raises `Busy` if they would exceed the limit."""
        if self.held + count > self.limit:
            self._rejected()
            raise Busy(
                f"the service already holds {self.held:,} bytes of requests, and {count:,} more "
                f"would exceed the limit of {self.limit:,} (MAX_QUEUE_BYTES): try again later",
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
