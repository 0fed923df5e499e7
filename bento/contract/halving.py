"""Retry a failed batch as two halves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Halving(Generic[T]):
    """Iterate over a batch: first the whole batch, then the halves of each part that failed.

    The parts keep the order of the items. An empty batch has no parts.

        for part in (parts := Halving(items)):
            try:
                rows += embed(part)
            except TooLarge:
                if not parts.halve():
                    raise
    """

    def __init__(self, items: Sequence[T]) -> None:
        self._left = [items] if len(items) else []  # a stack: the last part comes next
        self._part: Sequence[T] = ()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Sequence[T]:
        if not self._left:
            raise StopIteration
        self._part = self._left.pop()
        return self._part

    def halve(self) -> bool:
        """Split the current part, so that its halves come next; return False for a single item."""
        part, self._part = self._part, ()
        middle = len(part) // 2
        if middle:
            self._left += [part[middle:], part[:middle]]
        return middle > 0
