"""Call the service through both clients, over transports with scripted answers."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from router_client import AsyncVisionEncoderClient, VisionEncoderClient
from router_client.client.embeddings import read_json
from router_client.client.sending import Sender
from router_client.client.waiting import BlockingWaiting, run
from router_client.router.providers import Provider
from router_client.router.rules import RouterRequest, RouterResponse

Handler = Callable[[httpx.Request], httpx.Response]
Ask = Callable[..., Any]

URL = "http://encoder.test"
EMBEDDED = {"embedding": [1.0, 2.0]}


def blocking(call: Callable[[Any], Any], url: str = URL, **options: Any) -> Any:
    with VisionEncoderClient(url, **options) as client:
        result = call(client)
        return list(result) if isinstance(result, Iterator) else result


def asynchronous(call: Callable[[Any], Any], url: str = URL, **options: Any) -> Any:
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
        given = handler(request)  # a response can be read only once: return a copy
        return httpx.Response(given.status_code, headers=given.headers, content=given.content)

    return httpx.MockTransport(answered)


class Script:
    """Answer the n-th request with the n-th response or exception, and keep the requests."""

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


class Unpaused(BlockingWaiting):
    """Record pauses instead of waiting."""

    def __init__(self, handler: Handler) -> None:
        super().__init__(mock(handler), base_url=URL)
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


def send(waiting: Unpaused, *, max_retries: int = 4, safe: bool = True) -> Any:
    """Send one request through a `Sender` and return the JSON of the answer."""
    sender = Sender(waiting, URL, timeout=60, max_retries=max_retries)
    return run(sender.call("POST", "/embed/text", read_json, safe=safe))


def call_provider(provider: Provider, **fields: Any) -> RouterResponse:
    """Call a provider once in its own event loop, and close it."""

    async def ask() -> RouterResponse:
        try:
            return await provider.call(RouterRequest(**{"mode": "any", **fields}))
        finally:
            await provider.close()

    return asyncio.run(ask())


def ok(body: Any = EMBEDDED) -> httpx.Response:
    return httpx.Response(200, json=body)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def refused(status: int, code: str = "some_code", **headers: str) -> httpx.Response:
    body = {"error": "what was wrong", "code": code}
    return httpx.Response(status, json=body, headers=headers)
