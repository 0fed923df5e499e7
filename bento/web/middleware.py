"""The middleware of every route: request ids, access, limits, log, metrics, one error shape."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from time import perf_counter
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bento.contract.errors import (
    Busy,
    EncoderError,
    TimedOut,
    TooLarge,
    TooSlow,
    UnsupportedMediaType,
)
from bento.contract.routes import ROUTES
from bento.web.access import Access
from bento.web.bodies import Body, body_of
from bento.web.errors import error_response, shaped

if TYPE_CHECKING:
    from bento.runners.admission import ByteBudget, Claim
    from bento.web.metrics import Metrics

logger = logging.getLogger("vision_encoder")

_REQUEST_ID: Final = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
_UNCOUNTED: Final = ("/livez", "/readyz", "/metrics")
_CLIENT_CLOSED: Final = 499  # as in nginx; for the log and the metrics only
_ERROR_HEADERS: Final = ("Retry-After", "WWW-Authenticate")
_JSON_ROUTES: Final = frozenset(route.path for route in ROUTES if route.is_api)
_FORM_ROUTES: Final = frozenset(route.path for route in ROUTES if route.form)

_PIECE: Final = 65_536  # bytes of an answer that wait outside of the budget for a slow client

REQUEST_SECONDS: Final = 60.0  # from the headers to the answer
BODY_SECONDS: Final = 40.0  # of these, for the body to arrive


class RequestMiddleware:
    """Gives every request an id, limits, a log line, metrics and errors of one shape.

    Handles at most `max_requests` at a time. Cancels a request when its client disconnects. Times
    out after `seconds`, and after `body_seconds` if the body is still incomplete.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        max_body_bytes: int,
        max_items: int,
        max_requests: int,
        budget: ByteBudget,
        metrics: Metrics,
        seconds: float = REQUEST_SECONDS,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self.app = app
        self.access = access
        self.max_body_bytes = max_body_bytes
        self.max_items = max_items
        self.max_requests = max_requests
        self.budget = budget
        self.metrics = metrics
        self.seconds = seconds
        self.body_seconds = body_seconds
        self._under_way = 0  # requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # no route is a websocket
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with self.budget.claim() as claim:
            await self._handle(scope, receive, send, claim)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, claim: Claim) -> None:
        headers = Headers(scope=scope)
        exchange = _Exchange(
            *(scope, headers, receive, send, self.max_body_bytes, claim, self.body_seconds),
            body_of(scope["method"], scope["path"], self.max_items),
        )
        self._under_way += 1
        try:
            self._check(scope, headers)
            exchange.announce(headers.get("content-length", ""), self.budget)
            async with asyncio.timeout(self.seconds):
                await self.app(scope, exchange.receive, exchange.send)
        except EncoderError as rejection:  # before the body was read
            await error_response(rejection)(scope, receive, exchange.send)
        except TimeoutError:
            if not exchange.status:  # otherwise the client is slow to read the answer
                late = TimedOut(
                    f"the service did not answer within {self.seconds:g} s: send fewer items at a "
                    "time"
                )
                await error_response(late)(scope, receive, exchange.send)
        except (asyncio.CancelledError, ClientDisconnect):
            if not exchange.abandoned:
                raise
            await exchange.send_nowhere()
        finally:
            self._under_way -= 1
            exchange.close()
            exchange.log()
            self._count(exchange)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raise an error if the request can be rejected before its body is read."""
        method, path = scope["method"], scope["path"]
        self.access.check(method, path, headers)
        if self._under_way > self.max_requests and path not in _UNCOUNTED:
            self.metrics.rejected.labels("requests").inc()
            raise Busy(
                f"the service is handling {self.max_requests:,} requests, the most that "
                "MAX_QUEUE_MS allows: try again later"
            )
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and path in _FORM_ROUTES:
            allowed = "multipart/form-data"
        elif (method == "POST" and path in _JSON_ROUTES) or method == "PATCH":
            allowed = "application/json"
        elif media_type in ("", "application/json"):
            return  # the route reads no body, but some clients send a content type anyway
        else:
            raise UnsupportedMediaType(
                f"{method} {path[:200]} takes no body, but the content type is {media_type[:80]}"
            )
        if media_type != allowed:
            raise UnsupportedMediaType(
                f"{path[:200]} accepts the content type {allowed}, not {media_type[:80] or 'none'}"
            )
        _, options = parse_options_header(headers["content-type"])  # as the form parser reads them
        charset = options.get(b"charset", b"utf-8").decode("latin-1")
        if path in _FORM_ROUTES and charset.lower() not in ("utf-8", "utf8"):
            raise UnsupportedMediaType(f"the charset of a form must be utf-8, not {charset[:80]}")

    def _count(self, exchange: _Exchange) -> None:
        scope = exchange.scope
        path = scope["path"]
        known = path in _JSON_ROUTES or path in _FORM_ROUTES
        rejected = path if known else "other"  # it never reached a route
        route = getattr(scope.get("route"), "path", None) or rejected
        if route in _UNCOUNTED:
            return
        self.metrics.requests.labels(scope["method"], route, exchange.status, exchange.code).inc()
        self.metrics.request_seconds.labels(route).observe(exchange.seconds)


class _Exchange:
    """One request and its answer."""

    def __init__(
        self,
        scope: Scope,
        headers: Headers,
        receive: Receive,
        send: Send,
        max_bytes: int,
        claim: Claim,
        body_seconds: float,
        body: Body | None,
    ) -> None:
        self.scope = scope
        self.status = 0
        self.code = ""  # of an error
        self.abandoned = False
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._claim = claim
        self._body_seconds = body_seconds
        self._body = body  # None if the route takes no JSON
        self._body_due = asyncio.get_running_loop().time() + body_seconds
        self._received = 0  # bytes of the body
        self._rejection: EncoderError | None = None
        self._gone = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._task = asyncio.current_task()
        self._error_start: Message | None = None
        self._error_body = bytearray()
        self._started = perf_counter()
        given = headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.match(given) else uuid4().hex

    @property
    def seconds(self) -> float:
        return perf_counter() - self._started

    def announce(self, content_length: str, budget: ByteBudget) -> None:
        """Reject a body that would exceed a limit, before it arrives. Raises `TooLarge` or `Busy`.

        The bytes are not reserved, only counted as they arrive. Otherwise a client could reserve
        memory without sending anything.
        """
        if content_length.isdigit():
            self._check_size(int(content_length))
            budget.check(int(content_length))

    async def receive(self) -> Message:
        if self._watch:  # the body is complete; only a disconnect can follow
            await self._gone.wait()
            return {"type": "http.disconnect"}
        try:
            message = await self._receive_in_time()
            self._hold(message)
        except EncoderError as rejection:
            self._rejection = rejection
            raise
        if message["type"] == "http.disconnect":
            self.abandoned = True
        elif not message.get("more_body", False):
            self._watch = asyncio.create_task(self._watch_client())
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self.request_id
            if self.abandoned:  # BentoML answers 500 to a body that its client did not complete
                self.status = _CLIENT_CLOSED
            elif self.status >= 400:
                self._error_start = message
                return
        elif self._error_start is not None:
            self._error_body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_error(self._error_start)
            return
        await self._send_in_pieces(message)

    async def _send_in_pieces(self, message: Message) -> None:
        """Send a message; `send` waits between the pieces of a body until the client reads."""
        body = message.get("body", b"")
        if len(body) > _PIECE:
            self._claim.add(len(body))
            view = memoryview(body)
            for start in range(0, len(body) - _PIECE, _PIECE):
                piece = bytes(view[start : start + _PIECE])
                await self._send({**message, "body": piece, "more_body": True})
            message = {**message, "body": bytes(view[start + _PIECE :])}
        await self._send(message)

    async def send_nowhere(self) -> None:
        """Tell the server that this request is over. The client has disconnected."""
        self.status = _CLIENT_CLOSED
        if self._task and self._task.cancelling():
            self._task.uncancel()
        await self._send({"type": "http.response.start", "status": self.status, "headers": []})
        await self._send({"type": "http.response.body", "body": b""})

    def close(self) -> None:
        if self._watch:
            self._watch.cancel()

    async def _watch_client(self) -> None:
        await self._receive()  # returns when the client disconnects, or the answer is complete
        self._gone.set()
        if not self.status and self._task:
            self.abandoned = True
            self._task.cancel()

    async def _receive_in_time(self) -> Message:
        try:
            async with asyncio.timeout_at(self._body_due):
                return await self._receive()
        except TimeoutError:
            raise TooSlow(
                f"the request body did not arrive within {self._body_seconds:g} s: send less at a "
                "time"
            ) from None

    def _hold(self, message: Message) -> None:
        """Add received bytes to the budget. Raises `TooLarge` or `Busy`."""
        piece = message.get("body", b"")
        self._received += len(piece)
        self._check_size(self._received)
        self._claim.take(len(piece))
        if self._body:
            self._body.add(piece)
            if not message.get("more_body", False):
                self._body = None  # its pieces

    def _check_size(self, count: int) -> None:
        most = self._body.max_bytes if self._body else None
        if most is not None and count > most:
            raise TooLarge(f"the request body exceeds the limit of this route, {most:,} bytes")
        if count > self._max_bytes:
            raise TooLarge(
                f"the request body exceeds the limit of {self._max_bytes:,} bytes "
                "(MAX_REQUEST_BYTES): send less at a time"
            )

    async def _send_error(self, start: Message) -> None:
        """Send a buffered error in the shape of all errors."""
        given = bytes(self._error_body)
        headers = MutableHeaders(scope=start)
        if self._rejection:  # BentoML may have changed it
            ours = error_response(self._rejection)
            self.status, given = ours.status_code, bytes(ours.body)
            headers.update(
                {name: ours.headers[name] for name in _ERROR_HEADERS if name in ours.headers}
            )
            if isinstance(self._rejection, TooSlow):
                headers["Connection"] = "close"  # the rest of the body is not read
        error = shaped(self.scope["path"], self.status, given)
        self.code = error.get("code") or error["error"]["code"]  # the shape of OpenAI
        body = json.dumps(error, ensure_ascii=False).encode()
        headers["Content-Type"] = "application/json"
        headers["Content-Length"] = str(len(body))
        await self._send({**start, "status": self.status})
        await self._send({"type": "http.response.body", "body": body})

    def log(self) -> None:
        if self.scope["path"] in _UNCOUNTED:
            return
        logger.info(
            "request",
            extra={
                "request_id": self.request_id,
                "method": self.scope["method"],
                "path": self.scope["path"],
                "client": (self.scope.get("client") or (None,))[0],
                "status": self.status,
                "ms": round(self.seconds * 1000, 1),
            },
        )
