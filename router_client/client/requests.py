"""Build the parts of a request: paths, query parameters, forms and JSON bodies."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from bento.contract.errors import InvalidInput


def quoted(name: str) -> str:
    """Percent-encode a name as one path segment. Raises `InvalidInput` if that is impossible."""
    try:
        return quote(name, safe="")
    except (TypeError, ValueError):
        raise InvalidInput(
            f"{name!r} cannot be encoded in a URL; use a string of valid Unicode"
        ) from None


def collection_path(collection: str, rest: str = "") -> str:
    """Return the route of a collection, followed by `rest`."""
    return f"/collections/{quoted(collection)}{rest}"


def given(**parameters: str | None) -> dict[str, str]:
    """Drop the query parameters that are None."""
    return {name: value for name, value in parameters.items() if value is not None}


def form(normalize: bool) -> dict[str, str]:
    """Return the form fields that accompany uploaded images."""
    return {"normalize": str(normalize).lower()}


def unreadable(path: object, error: Exception) -> InvalidInput:
    """Return the error for a file that cannot be read."""
    what = error.strerror if isinstance(error, OSError) else None
    return InvalidInput(f"cannot read {path}: {what or error}")


def with_json_encoded(request: dict[str, Any]) -> dict[str, Any]:
    """Replace the `json` of a request by `content`, encoded as httpx would encode it.

    `json` may contain models of the contract. Only their fields that were set and are not None
    are sent. Raises the exceptions of `json.dumps`.
    """
    if request.get("json") is None or {"content", "data"} & request.keys():
        return request
    body = json.dumps(
        request["json"],
        ensure_ascii=False,
        separators=(",", ":"),
        allow_nan=False,
        default=_fields,
    )
    headers = httpx.Headers(request.get("headers"))
    headers.setdefault("Content-Type", "application/json")
    rest = {name: value for name, value in request.items() if name != "json"}
    return {**rest, "content": body.encode(), "headers": headers}


def _fields(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
