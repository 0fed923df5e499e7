"""Bound JSON bodies before they are parsed: the parser blocks all requests, and holds every value.

A body of 60 MB with small values takes 2 GB when parsed, and a second for each 15 MB.
"""

from __future__ import annotations

import re
from typing import Final

from bento.contract.errors import TooLarge
from bento.contract.routes import ROUTES

# A string, or the beginning of one at the end of a piece. Without that alternative, an open string
# would take quadratic time.
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+("|\\?\Z)', re.DOTALL)

_API_ROUTES: Final = {route.path: route for route in ROUTES if route.is_api}
(_PATCH,) = (route for route in ROUTES if route.method == "PATCH")


def body_of(method: str, path: str, max_items: int) -> Body | None:
    """Return the JSON body of a request that is about to arrive; None for a route without one."""
    route = _PATCH if method == "PATCH" else _API_ROUTES.get(path) if method == "POST" else None
    return Body(route.values + route.item_values * max_items, route.bytes) if route else None


class Body:
    """A JSON body that arrives in pieces, and may have at most `most` values and `max_bytes`."""

    def __init__(self, most: int, max_bytes: int | None = None) -> None:
        self.max_bytes = max_bytes
        self._most = most
        self._pieces: list[bytes] = []
        self._marks = 0  # with those in texts
        self._exact: _Exact | None = None

    def add(self, piece: bytes) -> None:
        """Count a piece of the body. Raises `TooLarge` as soon as there are too many values."""
        self._marks += _marks(piece)
        if self._marks <= self._most:  # as in almost every body
            self._pieces.append(piece)
            return
        if self._exact is None:
            self._exact = _Exact()
            for earlier in self._pieces:
                self._exact.add(earlier)
            self._pieces.clear()
        self._exact.add(piece)
        if self._exact.marks > self._most:
            raise TooLarge(
                f"the JSON body has more than {self._most:,} values, the limit of this route: send "
                "fewer at a time"
            )


class _Exact:
    """Counts the marks of a JSON text outside of its strings."""

    def __init__(self) -> None:
        self.marks = 0
        self._open = b""  # the quote, and perhaps a backslash, of a string that goes on

    def add(self, piece: bytes) -> None:
        if self._open == b'"' and b'"' not in piece and b"\\" not in piece:
            return  # in the middle of a long string
        text = self._open + piece
        self.marks += _marks(_STRING.sub(b"", text))
        self._open = b""
        for string in _STRING.finditer(text):
            self._open = b"" if string[1] == b'"' else b'"' + string[1]


def _marks(text: bytes) -> int:
    """Return how many values a JSON text has at most: each follows one of these characters."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")
