"""Parts of a request: paths, parameters, forms, the JSON body."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from bento.contract.errors import InvalidInput


def quoted(name: str) -> str:
    """Return a name as one segment of a path. Raises `InvalidInput`."""
    try:
        return quote(name, safe="")
    except (TypeError, ValueError):
        raise InvalidInput(f"{name!r} cannot be part of a URL") from None


def collection_path(collection: str, rest: str = "") -> str:
    return f"/collections/{quoted(collection)}{rest}"


def given(**parameters: str | None) -> dict[str, str]:
    """Return the parameters that have a value."""
    return {name: value for name, value in parameters.items() if value is not None}


def form(normalize: bool) -> dict[str, str]:
    return {"normalize": str(normalize).lower()}


def unreadable(path: object, error: Exception) -> InvalidInput:
    """Return the error for a file that cannot be read."""
    what = error.strerror if isinstance(error, OSError) else None
    return InvalidInput(f"cannot read {path}: {what or error}")


def with_json_encoded(request: dict[str, Any]) -> dict[str, Any]:
    """Encode the `json` of a request as httpx does; it may contain models of the contract.

    Of a model only the fields that were set are sent, without those that are None. Raises what
    `json.dumps` raises.
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
    raise TypeError(f"{type(value).__name__} is no JSON")
