"""Give all errors one shape: those of the service, of BentoML and of pydantic.

The shape is `{"error": message, "code": stable_code}`, and on `/v1` the one of OpenAI.
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
_MESSAGES: Final = {
    404: "this route does not exist: see /docs",
    405: "this route does not accept this method: see /docs",
    500: "the service failed: look for the X-Request-ID of this answer in its log",
    503: "the service is not ready: try again later",
}


def error_response(error: ServiceError) -> JSONResponse:
    """Return the response to an error, with its status and headers."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), error.status, headers)


def error_body(error: ServiceError) -> dict[str, Any]:
    """Return the body of an error, with `param`, the invalid field, if it is known."""
    body = {"error": str(error), "code": error.code}
    if isinstance(error, InvalidRequest) and error.param:
        body["param"] = error.param
    return body


def shaped(path: str, status: int, body: bytes) -> dict[str, Any]:
    """Return the body of any error in the shape of the route `path`."""
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
    message = content.get("error") if isinstance(content, dict) else body.decode(errors="replace")
    return {"error": _MESSAGES.get(status) or str(message)[:500] or f"HTTP {status}", "code": code}
