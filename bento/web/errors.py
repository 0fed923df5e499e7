"""Errors as answers: one shape for the service's own, BentoML's and pydantic's.

`{"error": sentence, "code": stable_code}`, and on `/v1` what OpenAI's clients expect.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from starlette.responses import JSONResponse

from bento.contract.errors import InvalidRequest, ServiceError, describe_details, place
from bento.contract.openai import openai_error

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


def error_response(error: ServiceError) -> JSONResponse:
    """Return an error as an answer with its status and headers."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), error.status, headers)


def error_body(error: ServiceError) -> dict[str, Any]:
    """Return an error's body; `param`, which only OpenAI's shape has, where it is known."""
    body = {"error": str(error), "code": error.code}
    if isinstance(error, InvalidRequest) and error.param:
        body["param"] = error.param
    return body


def shaped(path: str, status: int, body: bytes) -> dict[str, Any]:
    """Return the body of an error, whoever made it, in the shape that the route answers in."""
    shape = _shaped(status, body)
    param = shape.pop("param", None)
    if not path.startswith("/v1/"):
        return shape
    return openai_error(status, shape["error"], shape["code"], param).model_dump()


def _shaped(status: int, body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if isinstance(content, dict) and {"error", "code"} <= content.keys():
        return content
    code = _CODES.get(status, "internal_error" if status >= 500 else "invalid_request")
    if isinstance(content, dict) and isinstance(content.get("detail"), list):
        details = content["detail"]
        param = place(details[0]) if details else ""
        return {"error": describe_details(details), "code": code, "param": param or None}
    if isinstance(content, list) and content:
        content = content[0]
    said = content.get("error") if isinstance(content, dict) else body.decode(errors="replace")
    return {"error": _SENTENCES.get(status) or str(said)[:500] or f"HTTP {status}", "code": code}
