"""What every route shares: request ids, the access log, body limits, one shape of errors."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from time import perf_counter
from typing import Any, Final, ParamSpec, Protocol, TypeVar
from uuid import uuid4

from pydantic import ValidationError
from pythonjsonlogger.json import JsonFormatter
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bento.errors import EncoderError, InvalidInput, TooLarge, UnsupportedMediaType

logger = logging.getLogger("vision_encoder")

_REQUEST_ID: Final = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
_CODES: Final = {
    400: "invalid_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    429: "busy",
    500: "internal_error",
    503: "not_ready",
    504: "timeout",
}
_SENTENCES: Final = {
    404: "there is no such route; see /docs",
    405: "this route does not take that method; see /docs",
    500: "something broke in the service; its log has the request id of this answer",
    503: "the service is not ready yet",
}

P = ParamSpec("P")
R = TypeVar("R")


class _Answerable(Protocol):
    status: int
    code: str


def answering(
    *errors: type[Exception],
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """Decorate a handler so that these errors (with `status` and `code`) become its answer.

    BentoML hides or reshapes what is raised; a response that is returned it leaves alone.
    """

    def decorate(handler: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        @wraps(handler)
        async def answer(*args: P.args, **kwargs: P.kwargs) -> Any:
            try:
                return await handler(*args, **kwargs)
            except errors as error:
                return error_response(error)  # type: ignore[arg-type]  # each has status and code

        return answer

    return decorate


def error_response(error: _Answerable) -> JSONResponse:
    """Return an error as `{"error": sentence, "code": stable_code}` with its status."""
    return JSONResponse({"error": str(error), "code": error.code}, error.status)


async def read_upload(request: Request) -> tuple[bytes, bool | None]:
    """Return the `file` of a multipart form, and its `normalize` if it has one.

    Raises `InvalidInput` when there is no such file, or anything else besides.
    """
    async with request.form(max_files=1, max_fields=2) as form:
        file, normalize = form.get("file"), form.get("normalize")
        if not isinstance(file, UploadFile):
            raise InvalidInput("send the picture as multipart/form-data, in a field named file")
        if unknown := form.keys() - {"file", "normalize"}:
            raise InvalidInput(f"{', '.join(sorted(unknown))}: not a field of this request")
        if normalize not in (None, "true", "false"):
            raise InvalidInput(f"normalize must be true or false, not {normalize!r}")
        return await file.read(), None if normalize is None else normalize == "true"


def describe_validation(details: Sequence[Any]) -> str:
    """Put pydantic's error details into one sentence that names the fields."""
    parts = []
    for detail in details:
        where = ".".join(str(part) for part in detail.get("loc", ()) if part != "root")
        what = str(detail.get("msg", "is not valid")).removeprefix("Value error, ")
        if detail.get("type") == "extra_forbidden":
            what = "is not a field of this request"
        parts.append(f"{where}: {what}" if where else what)
    return "; ".join(parts)


class RequestMiddleware:
    """Gives every request an id, a body limit, a line in the log and errors of one shape."""

    def __init__(self, app: ASGIApp, *, json_routes: frozenset[str], max_body_bytes: int) -> None:
        self.app = app
        self.json_routes = json_routes
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.max_body_bytes)
        try:
            if refusal := self._refusal(scope):
                await error_response(refusal)(scope, receive, exchange.send)
            else:
                await self.app(scope, exchange.receive, exchange.send)
        finally:
            exchange.log()

    def _refusal(self, scope: Scope) -> EncoderError | None:
        """Return why a request is refused before its body is read, if it is."""
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.max_body_bytes:
            return _body_too_large(self.max_body_bytes)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if (
            scope["method"] == "POST"
            and scope["path"] in self.json_routes
            and media_type != "application/json"
        ):
            return UnsupportedMediaType(
                f"{scope['path']} takes application/json, not {media_type or 'an untyped body'}"
            )
        return None


class _Exchange:
    """One request and its answer, as the middleware sees them."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_bytes: int) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._received = 0
        self._too_large = False
        self._status = 0
        self._error_start: Message | None = None
        self._error_body = bytearray()
        self._started = perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.match(given) else uuid4().hex

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > self._max_bytes:
                self._too_large = True
                raise _body_too_large(self._max_bytes)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self.request_id
            if self._status >= 400:
                self._error_start = message
                return
        elif self._error_start is not None:
            self._error_body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_error(self._error_start)
            return
        await self._send(message)

    async def _send_error(self, start: Message) -> None:
        """Send a buffered error, in our shape whoever made it."""
        error = _shaped(self._status, bytes(self._error_body))
        if self._too_large:
            self._status = TooLarge.status
            refusal = _body_too_large(self._max_bytes)
            error = {"error": str(refusal), "code": refusal.code}
        body = json.dumps(error, ensure_ascii=False).encode()
        headers = MutableHeaders(scope=start)
        headers["Content-Type"] = "application/json"
        headers["Content-Length"] = str(len(body))
        await self._send({**start, "status": self._status})
        await self._send({"type": "http.response.body", "body": body})

    def log(self) -> None:
        if self.scope["path"] in ("/livez", "/readyz", "/metrics"):
            return
        logger.info(
            "request",
            extra={
                "request_id": self.request_id,
                "method": self.scope["method"],
                "path": self.scope["path"],
                "status": self._status,
                "ms": round((perf_counter() - self._started) * 1000, 1),
            },
        )


def _body_too_large(limit: int) -> TooLarge:
    return TooLarge(f"the request body is larger than {limit:,} bytes, the limit of this service")


def _shaped(status: int, body: bytes) -> dict[str, str]:
    """Return an error's body in our shape: as it is, or made from what BentoML says."""
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if isinstance(content, dict) and content.keys() == {"error", "code"}:
        return content
    code = _CODES.get(status, "internal_error" if status >= 500 else "invalid_request")
    if isinstance(content, dict) and isinstance(content.get("detail"), list):
        return {"error": describe_validation(content["detail"]), "code": code}
    if isinstance(content, list) and content:
        content = content[0]
    said = content.get("error") if isinstance(content, dict) else body.decode(errors="replace")
    return {"error": _SENTENCES.get(status) or str(said)[:500] or f"HTTP {status}", "code": code}


def configure_logs() -> None:
    """Log one JSON object a line, BentoML's own lines included."""
    formatter = JsonFormatter(
        "{asctime}{levelname}{name}{message}",
        style="{",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )
    logger.setLevel(logging.INFO)
    for name in ("", "bentoml"):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(formatter)
            handler.filters.clear()  # BentoML's would put its own request_id over ours
    # a request that fails validation is the client's mistake: no traceback in our log
    logging.getLogger("bentoml._internal.server.http_app").addFilter(_is_our_fault)


def _is_our_fault(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, ValidationError | EncoderError)
