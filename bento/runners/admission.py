"""Limit the bytes of requests that this process holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from bento.contract.errors import Busy, TooLarge


class ByteBudget:
    """Counts the bytes that requests make this process hold. Not thread-safe.

    Args:
        limit: the most bytes at a time.
        rejected: called for each rejection.
    """

    def __init__(self, limit: int, rejected: Callable[[], None]) -> None:
        self.limit = limit
        self.held = 0
        self._rejected = rejected

    def check(self, count: int) -> None:
        """Raise `Busy` if so many more bytes would exceed the limit."""
        if self.held + count > self.limit:
            self._rejected()
            raise Busy(
                f"the service already holds {self.held:,} bytes of requests, and {count:,} more "
                f"would exceed the limit of {self.limit:,} (MAX_QUEUE_BYTES): try again later",
            )

    @contextmanager
    def claim(self) -> Iterator[Claim]:
        """Let a request hold bytes. Its threads may work on after the block ends: see `Claim`."""
        claim = Claim(self, current_claim.get(None))
        token = current_claim.set(claim)
        try:
            yield claim
        finally:
            current_claim.reset(token)
            claim.end()


class Claim:
    """The bytes that a request holds, until the request and all its threads have ended.

    A part of a request may have a claim of its own inside of the request's.
    """

    def __init__(self, budget: ByteBudget, outer: Claim | None) -> None:
        self._budget = budget
        self._outer = outer
        self._held = 0
        self._ended = False
        self._holders = 1  # the request, its threads and its inner claims
        self.request: Claim = outer.request if outer else self
        self.fetched = 0  # of the bytes, those from URLs
        if outer:
            outer.keep()

    @property
    def gone(self) -> bool:
        """Whether the request has ended, so that nobody waits for its work. Thread-safe."""
        return self._ended or (self._outer is not None and self._outer.gone)

    def take(self, count: int) -> None:
        """Hold more bytes. Raises `Busy` if they would exceed the limit of the budget."""
        self._budget.check(count)
        self.add(count)

    def add(self, count: int) -> None:
        """Hold more bytes, even beyond the limit: those of an answer, which cannot be shed."""
        self._budget.held += count
        self._held += count

    def take_fetched(self, count: int, limit: int) -> None:
        """Hold bytes from a URL. Raises `TooLarge` beyond `limit` for all URLs, or `Busy`."""
        request = self.request
        if request.fetched + count > limit:
            raise TooLarge(
                f"the images at the URLs of the request have more than {limit:,} bytes in total, "
                "the limit (MAX_REQUEST_BYTES)"
            )
        request.take(count)
        request.fetched += count

    def keep(self) -> None:
        """Hold the bytes until `drop`, even if the request ends before."""
        self._holders += 1

    def drop(self) -> None:
        """Undo one `keep`."""
        self._holders -= 1
        if not self._holders:
            self._budget.held -= self._held
            if self._outer:
                self._outer.drop()

    def end(self) -> None:
        """Mark the request as ended, and release its bytes as soon as its threads have ended."""
        self._ended = True
        self.drop()


current_claim: Final[ContextVar[Claim]] = ContextVar("current_claim")
