"""How many payloads fit on a page of an answer."""

from __future__ import annotations

import json
from typing import Final

from rag.store.interface import Payload

_FIRST: Final = 100  # payloads to fetch before their size is known


class PageSize:
    """Counts the bytes of a page's payloads. The first payload always fits.

    Args:
        most: the most bytes of a page.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self._count = 0

    def fits(self, payload: Payload) -> bool:
        """Count a payload, and return whether the page may have it."""
        self._bytes += len(json.dumps(payload, ensure_ascii=False))
        self._count += 1
        return self._count == 1 or self._bytes <= self._most

    def step(self, wanted: int) -> int:
        """Return how many payloads to fetch next: those that fit if they are like those before."""
        if not self._count:
            return min(_FIRST, wanted)
        left = (self._most - self._bytes) * self._count // max(1, self._bytes)
        return max(1, min(left, wanted))
