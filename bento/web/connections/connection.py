"""Limit how long a connection may be idle or send headers, and which proxies it trusts."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONNECTION: Final = f"{__name__}:Connection"
"""`Connection`, as `MODULE:CLASS`."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection, closed if a request's headers take longer than `header_seconds`.

    The time counts from the opening of the connection, and later from the first byte after an
    answer. Without this limit, uvicorn would wait forever for the first request, and for headers
    that come slowly. Between an answer and the next byte, a connection may be idle for
    `keep_alive_seconds`.

    Drops X-Forwarded-Host, which uvicorn does not know, unless a trusted proxy sent it.
    """

    header_seconds: ClassVar[float] = 20.0
    keep_alive_seconds: ClassVar[int] = 75
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client:  # a socket for both IPv4 and IPv6 shows an IPv4 client as ::ffff:10.0.0.1
            self.client = (self.client[0].removeprefix("::ffff:"), self.client[1])
        self.timeout_keep_alive = self.keep_alive_seconds
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task:  # the connection was idle
            self._wait_for_headers()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        if not self._is_trusted():
            self.headers[:] = [one for one in self.headers if one[0] != b"x-forwarded-host"]
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._late = self.loop.call_later(self.header_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None

    def _is_trusted(self) -> bool:
        proxies = self.app.trusted_hosts if isinstance(self.app, ProxyHeadersMiddleware) else ()
        return (self.client[0] if self.client else None) in proxies
