"""Errors as answers: one shape for ours, BentoML's and pydantic's."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from starlette.responses import JSONResponse

from bento.contract.errors import Busy, Unauthorized

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
_TOLD: Final = 10  # errors of one body

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
    headers = {}
    if isinstance(error, Busy):
        headers["Retry-After"] = str(error.retry_after)
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": str(error), "code": error.code}, error.status, headers)


def describe_validation(details: Sequence[Any]) -> str:
    """Put pydantic's error details, the first of them, into one sentence that names the fields."""
    parts = []
    for detail in details[:_TOLD]:
        where = ".".join(str(part) for part in detail.get("loc", ()) if part != "root")
        what = str(detail.get("msg", "is not valid")).removeprefix("Value error, ")
        if detail.get("type") == "extra_forbidden":
            what = "is not a field of this request"
        parts.append(f"{where}: {what}" if where else what)
    if more := len(details) - len(parts):
        parts.append(f"and {more:,} more")
    return "; ".join(parts)


def shaped(status: int, body: bytes) -> dict[str, Any]:
    """Return an error's body in our shape: as it is, or made from what BentoML says."""
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if isinstance(content, dict) and {"error", "code"} <= content.keys():
        return content
    code = _CODES.get(status, "internal_error" if status >= 500 else "invalid_request")
    if isinstance(content, dict) and isinstance(content.get("detail"), list):
        return {"error": describe_validation(content["detail"]), "code": code}
    if isinstance(content, list) and content:
        content = content[0]
    said = content.get("error") if isinstance(content, dict) else body.decode(errors="replace")
    return {"error": _SENTENCES.get(status) or str(said)[:500] or f"HTTP {status}", "code": code}
