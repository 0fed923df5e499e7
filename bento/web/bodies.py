"""Bound JSON bodies before they are parsed: the parser blocks all requests, and holds every value.

A body of 60 MB with small values takes 2 GB when parsed, and a second for each 15 MB.
"""

from __future__ import annotations

import re
from typing import Final

from bento.contract.errors import TooLarge
from bento.contract.routes import ROUTES

# The end of the text ends a string, too: otherwise an open string would take quadratic time.
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)', re.DOTALL)

_API_ROUTES: Final = {route.path: route for route in ROUTES if route.is_api}
(_PATCH,) = (route for route in ROUTES if route.method == "PATCH")


def body_of(method: str, path: str, max_items: int) -> Body | None:
    """Return the JSON body of a request that is about to arrive; None for a route without one."""
    route = _PATCH if method == "PATCH" else _API_ROUTES.get(path) if method == "POST" else None
    return Body(route.values + route.item_values * max_items) if route else None


class Body:
    """A JSON body that arrives in pieces, and may have at most `most` values."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._pieces: list[bytes] = []
        self._marks = 0

    def add(self, piece: bytes) -> None:
        """Add a piece of the body. This copies nothing."""
        self._pieces.append(piece)
        self._marks += _marks(piece)

    def check(self) -> None:
        """Raise `TooLarge` if the complete body has too many values."""
        if self._marks <= self._most:  # almost always; it counts the marks in texts as well
            return
        body = b"".join(self._pieces)
        # Each string has two quotes. A quote in a text has a backslash before it, and a backslash
        # at the end of a text hides at most one of its two quotes.
        quotes = body.count(b'"') - body.count(b'\\"')
        if quotes > 4 * self._most or _marks(_STRING.sub(b"", body)) > self._most:
            raise TooLarge(
                f"the JSON body has more than {self._most:,} values, the limit of this route: send "
                "fewer at a time"
            )


def _marks(text: bytes) -> int:
    """Return how many values a JSON text has at most: each follows one of these characters."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")
