"""Limit what a connection may cost before its request is checked, and which proxies it trusts."""

from __future__ import annotations

import asyncio
import json
from time import monotonic
from typing import Any, ClassVar, Final

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bento.contract.errors import Busy, InvalidRequest, ServiceError, TooLarge
from bento.web.connections.headers import ALWAYS

CONNECTION: Final = f"{__name__}:Connection"
"""`Connection`, as `MODULE:CLASS`."""

MAX_HEADER_BYTES: Final = 65_536  # of a request, with its trailers and the extensions of its chunks
MAX_PIPELINED: Final = 16  # requests that a connection sends before it has their answers
_CHUNK_BYTES: Final = 32  # of the frame of a chunk, without extensions
_LOOK_SECONDS: Final = 5.0  # between two looks whether the client reads


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with limits that hold before a request is known.

    * The headers of a request, its trailers and the extensions of its chunks have at most
      `MAX_HEADER_BYTES`. Beyond that, the answer is 431.
    * Headers may take `header_seconds` to arrive. The time counts from the opening of the
      connection, and later from the first byte after an answer. Between an answer and the next
      byte, a connection may be idle for `keep_alive_seconds`.
    * At most `max_connections` are open. One more closes the one that has waited for the headers of
      a request for the longest time. If each has a request under way, the new one gets 429.
    * A client that reads nothing of an answer for `unread_seconds` is cut off.

    Drops X-Forwarded-Host, which uvicorn does not know, unless a trusted proxy sent it.
    """

    header_seconds: ClassVar[float] = 20.0
    keep_alive_seconds: ClassVar[int] = 75
    unread_seconds: ClassVar[float] = 20.0
    max_connections: ClassVar[int] = 1000

    _late: asyncio.TimerHandle | None = None
    _look: asyncio.TimerHandle | None = None
    _idle_since = 0.0  # not of the loop's clock, which stands still while events are handled
    _head_bytes = 0  # since the last headers or the end of the last request, without bodies
    _body_bytes = 0  # of the data that is being parsed, with the frames of chunks
    _is_past_headers = False  # in the data that is being parsed
    _unread = 0  # bytes of answers that wait for the client, at the last look
    _read_at = 0.0  # when the client last read something

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client:  # a socket for both IPv4 and IPv6 shows an IPv4 client as ::ffff:10.0.0.1
            self.client = (self.client[0].removeprefix("::ffff:"), self.client[1])
        self.timeout_keep_alive = self.keep_alive_seconds
        self._idle_since = monotonic()
        self._wait_for_headers()
        self._check_reading()
        if len(self.connections) > self.max_connections and not self._make_room():
            self._refuse(
                Busy(
                    f"the service has {self.max_connections:,} connections with requests under "
                    "way, the limit (MAX_CONNECTIONS): try again later",
                    retry_after=1,
                )
            )

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.timeout_keep_alive_task:  # the connection was idle
            self._wait_for_headers()
        self._body_bytes, self._is_past_headers = 0, False
        super().data_received(data)
        more = len(data) - self._body_bytes
        self._head_bytes = 0 if self._is_past_headers else max(0, self._head_bytes + more)
        if self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(_too_large())

    def on_headers_complete(self) -> None:
        self._head_bytes = len(self.url) + sum(
            len(name) + len(value) for name, value in self.headers
        )
        if self._head_bytes > MAX_HEADER_BYTES or len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError  # the parser stops, and `send_400_response` follows
        self._is_past_headers = True
        self._stop_waiting()
        if not self._is_trusted():
            self.headers[:] = [one for one in self.headers if one[0] != b"x-forwarded-host"]
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._body_bytes += _CHUNK_BYTES

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_past_headers = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._idle_since = monotonic()
        super().on_response_complete()

    def resume_writing(self) -> None:
        self._read_at = self.loop.time()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._look:
            self._look.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's sentence
        if self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(_too_large())
        elif len(self.pipeline) >= MAX_PIPELINED:
            self.transport.abort()
        else:
            self._refuse(InvalidRequest("the request is not valid HTTP"))

    def error_body(self, error: ServiceError) -> dict[str, Any]:
        """Return the body of an answer to a request that is not handled."""
        return {"error": str(error), "code": error.code}

    def _refuse(self, error: ServiceError) -> None:
        """Answer with an error, unless another answer has begun, and close the connection."""
        self._stop_waiting()
        if not (self.cycle and self.cycle.response_started and not self.cycle.response_complete):
            body = json.dumps(self.error_body(error)).encode()
            headers = [
                *ALWAYS,
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            if error.retry_after:
                headers.append((b"retry-after", str(error.retry_after).encode()))
            head = [b"%b: %b\r\n" % header for header in headers]
            self.transport.write(b"".join([STATUS_LINE[error.status], *head, b"\r\n", body]))
        self.transport.close()

    def _make_room(self) -> bool:
        """Cut off the connection that has been idle for the longest time, if there is one."""
        others: list[Connection] = [one for one in self.connections if isinstance(one, Connection)]
        idle = [one for one in others if one._is_idle and one is not self]
        if idle:
            min(idle, key=lambda one: one._idle_since).transport.abort()
        return bool(idle)

    @property
    def _is_idle(self) -> bool:
        """Whether no request is under way, even if the headers of one have begun to arrive."""
        if self.transport.is_closing():
            return False
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def _check_reading(self) -> None:
        """Cut off a client that does not read, and look again in a few seconds."""
        unread, now = self.transport.get_write_buffer_size(), self.loop.time()
        if unread == 0 or unread != self._unread:
            self._read_at = now
        self._unread = unread
        if now - self._read_at > self.unread_seconds:
            self.transport.abort()
        else:
            again = min(_LOOK_SECONDS, self.unread_seconds / 4)
            self._look = self.loop.call_later(again, self._check_reading)

    def _wait_for_headers(self) -> None:
        self._late = self.loop.call_later(self.header_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None

    def _is_trusted(self) -> bool:
        proxies = self.app.trusted_hosts if isinstance(self.app, ProxyHeadersMiddleware) else ()
        return (self.client[0] if self.client else None) in proxies


def _too_large() -> TooLarge:
    return TooLarge(
        f"the headers of the request have more than {MAX_HEADER_BYTES:,} bytes, the limit",
        status=431,
    )
