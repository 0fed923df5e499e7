"""Errors as the service answers them."""

from __future__ import annotations

import httpx


def problem(response: httpx.Response) -> tuple[str, str]:
    """Return the code and the sentence of an error, which must have the shape of its route."""
    error = response.json()
    if not response.url.path.startswith("/v1/"):
        assert error.keys() == {"error", "code"}
        return error["code"], error["error"]
    assert error.keys() == {"error"}
    assert error["error"].keys() == {"message", "type", "param", "code"}
    return error["error"]["code"], error["error"]["message"]
