"""Read error responses."""

from __future__ import annotations

import httpx


def problem(response: httpx.Response) -> tuple[str, str]:
    """Return the code and the message of an error, and check that it has the shape of its route."""
    error = response.json()
    if not response.url.path.startswith("/v1/"):
        assert error.keys() == {"error", "code"}
        return error["code"], error["error"]
    assert error.keys() == {"error"}
    assert error["error"].keys() == {"message", "type", "param", "code"}
    return error["error"]["code"], error["error"]["message"]
