"""A transport for a client that blocks: a request ends by a deadline, however its bytes come.

httpx bounds each read and each write, not all of them together: an answer in drips could take any
time.
"""

from __future__ import annotations

import ssl
import threading
import time
from typing import Any, Final

import httpcore
import httpx

_PIECE: Final = 65_536  # bytes that are written at once

thread: Final = threading.local()
"""`deadline`: when, by `time.monotonic`, what this thread sends and receives has to be over."""


class DeadlineTransport(httpx.HTTPTransport):
    """Sends over connections that keep to the deadline of the thread that uses them."""

    def __init__(self, limits: httpx.Limits, tls: ssl.SSLContext) -> None:
        super().__init__(limits=limits, verify=tls)
        self._pool = httpcore.ConnectionPool(  # httpx does not hand a backend on
            ssl_context=tls,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Backend(),
        )


class _Backend(httpcore.SyncBackend):
    def connect_tcp(self, *args: Any, **options: Any) -> httpcore.NetworkStream:
        return DeadlineStream(super().connect_tcp(*args, **options))


class DeadlineStream(httpcore.NetworkStream):
    """Wraps a connection. Raises `httpcore.ReadTimeout` when the deadline is over."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _within(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            self._stream.write(buffer[start : start + _PIECE], _within(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _within(timeout))
        return DeadlineStream(stream)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _within(timeout: float | None) -> float:
    left: float = thread.deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the answer is not complete")
    return left if timeout is None else min(left, timeout)
