"""Limit the time in which a connection must send the headers of a request."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONNECTION: Final = f"{__name__}:Connection"
"""`Connection`, as `MODULE:CLASS`."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection, closed if a request's headers take longer than `header_seconds`.

    The time counts from the opening of the connection, or from the previous answer. Without this
    limit, uvicorn would wait forever for the first request, and for headers that come slowly.
    """

    header_seconds: ClassVar[float] = 20.0
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
        pipelined = self.cycle is not None and not self.cycle.response_complete
        if not pipelined:
            self._late = self.loop.call_later(self.header_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None
