"""Asking through both clients, and transports that answer as they are told."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from router_client import (
    AsyncVisionEncoderClient,
    VisionEncoderClient,
)

Handler = Callable[[httpx.Request], httpx.Response]
Ask = Callable[..., Any]

EMBEDDED = {"embedding": [1.0, 2.0]}


def blocking(call: Callable[[Any], Any], url: str = "http://encoder.test", **options: Any) -> Any:
    with VisionEncoderClient(url, **options) as client:
        result = call(client)
        return list(result) if isinstance(result, Iterator) else result


def asynchronous(
    call: Callable[[Any], Any], url: str = "http://encoder.test", **options: Any
) -> Any:
    async def ask() -> Any:
        async with AsyncVisionEncoderClient(url, **options) as client:
            result = call(client)
            if hasattr(result, "__aiter__"):
                return [item async for item in result]
            return await result

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [blocking, asynchronous])


def mock(handler: Handler) -> httpx.MockTransport:
    def answered(request: httpx.Request) -> httpx.Response:
        given = handler(request)  # an answer can be read once: give a copy
        return httpx.Response(given.status_code, headers=given.headers, content=given.content)

    return httpx.MockTransport(answered)


class Script:
    """Answers the n-th request with the n-th response or exception, and keeps the requests."""

    def __init__(self, *steps: httpx.Response | Exception) -> None:
        self.steps = list(steps)
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(time.monotonic())
        step = self.steps[len(self.requests) - 1]
        if isinstance(step, Exception):
            raise step
        return step


def ok(body: Any = EMBEDDED) -> httpx.Response:
    return httpx.Response(200, json=body)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def refused(status: int, code: str = "some_code", **headers: str) -> httpx.Response:
    body = {"error": "what was wrong", "code": code}
    return httpx.Response(status, json=body, headers=headers)
