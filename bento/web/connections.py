"""Connections: uvicorn's, with a bound on how long headers may take."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS: Final = 20.0
CONNECTION: Final = f"{__name__}:Connection"
"""The class, as uvicorn imports it."""


class Connection(HttpToolsProtocol):
    """A connection that is closed unless a request's headers come within `HEADER_SECONDS`.

    Counted from when it was opened, or from the answer before. uvicorn itself waits for ever for a
    first request, and for headers that come in drips.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._stop_waiting()
        if self.cycle is None or self.cycle.response_complete:  # else the next one came already
            self._late = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None
