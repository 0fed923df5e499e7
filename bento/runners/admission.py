"""How many bytes of requests this process may hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bento.contract.errors import Busy


class ByteBudget:
    """Counts the bytes of what is being received and of what waits. Not thread-safe."""

    def __init__(self, limit: int, refused: Callable[[], None]) -> None:
        self.limit = limit
        self.held = 0
        self._refused = refused  # called whenever there is no room

    def take(self, count: int) -> None:
        """Count bytes in; `release` counts them out. Raises `Busy` when they are too many."""
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
        """Count bytes in until the block ends. Raises `Busy` when they are too many."""
        self.take(count)
        try:
            yield
        finally:
            self.release(count)
