"""Connections: uvicorn's, with a bound on how long headers may take, and refused at the end."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from types import FrameType
from typing import Final

import psutil  # type: ignore[import-untyped]
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS: Final = 20.0


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


def refuse_once_stopping(*, unless: threading.Event) -> None:
    """Let new connections be refused as soon as SIGTERM comes, before what runs is finished.

    The supervisor keeps its listening socket open until its worker has ended: who connects
    meanwhile would wait for nothing. Not where other workers listen on that socket too: one that
    is still serving comes to no end of accepting from it. A worker that ends `unless` the service
    does leaves the socket to its successor. To be called in the main thread, when the server has
    set its own handler.
    """
    finish = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        if not unless.is_set():
            for listener in _listeners():
                listener.shutdown(socket.SHUT_RDWR)
        if callable(finish):
            finish(number, frame)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def _listeners() -> list[socket.socket]:
    connections = psutil.Process().net_connections("tcp")
    return [
        socket.socket(fileno=socket.dup(one.fd))
        for one in connections
        if one.status == psutil.CONN_LISTEN
    ]
