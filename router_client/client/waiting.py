"""The only place where the clients wait: on an event loop, or by blocking a thread.

Both clients run the same coroutines, which wait only through a `Waiting`. `BlockingWaiting` never
suspends a coroutine, so `run` can run it without an event loop.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
import time
from collections.abc import Awaitable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import httpx

from router_client.client import deadlines

IN_FLIGHT: Final = 8  # concurrent requests of one stream
_CONNECT_SECONDS: Final = 5.0
_LONGEST_WAIT: Final = 3600.0  # seconds; a longer Retry-After is lowered to it
# The service closes idle connections after 5 s. The client closes them earlier, so that it never
# sends a request over a connection that is just being closed.
_LIMITS: Final = httpx.Limits(max_connections=100, keepalive_expiry=3)

T = TypeVar("T")


class Answer(NamedTuple):
    """The status, the headers and the whole body of a response."""

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def retry_after(self) -> float | None:
        """The seconds that Retry-After asks for, at most 3600; None if it is missing or invalid."""
        value = self.headers.get("Retry-After", "").strip()
        if re.fullmatch("[0-9]+", value):
            return float(value) if len(value) < 4 else _LONGEST_WAIT
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
        return min(max(seconds, 0.0), _LONGEST_WAIT)


class Stopped(Exception):
    """Raised in a thread whose result is no longer needed."""


class Waiting(Protocol):
    """The operations of a client that take time."""

    async def send(self, request: dict[str, Any], seconds: float) -> Answer:
        """Send a request and read the whole answer. Raises the exceptions of httpx."""

    async def sleep(self, seconds: float) -> None:
        """Wait for some seconds."""

    async def read(self, path: Path) -> bytes:
        """Return the bytes of a file. Raises `OSError`."""

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Start a coroutine concurrently. Await what this returns, or pass it to `cancel`."""

    async def cancel(self, started: Iterable[Any]) -> None:
        """Stop coroutines that were started, and discard their outcomes."""

    async def close(self) -> None:
        """Close the connections."""


class AsyncWaiting:
    """Wait on the running event loop."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None, **options: Any) -> None:
        transport = transport or httpx.AsyncHTTPTransport(limits=_LIMITS, verify=_tls())
        self._http = httpx.AsyncClient(transport=transport, **options)

    async def send(self, request: dict[str, Any], seconds: float) -> Answer:
        try:
            async with asyncio.timeout(seconds):
                response = await self._http.request(**request, timeout=_timeout(seconds))
        except TimeoutError:
            raise httpx.ReadTimeout("the answer is not complete") from None
        return Answer(response.status_code, response.headers, response.content)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def read(self, path: Path) -> bytes:
        return await asyncio.to_thread(path.read_bytes)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Awaitable[T]:
        return asyncio.create_task(coroutine)

    async def cancel(self, started: Iterable[asyncio.Task[Any]]) -> None:
        tasks = list(started)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        with suppress(RuntimeError):  # the event loop is closed, and so are its connections
            await self._http.aclose()


class BlockingWaiting:
    """Wait by blocking the thread. Start each concurrent coroutine on its own thread."""

    def __init__(self, transport: httpx.BaseTransport | None, **options: Any) -> None:
        transport = transport or deadlines.DeadlineTransport(_LIMITS, _tls())
        self._http = httpx.Client(transport=transport, **options)

    async def send(self, request: dict[str, Any], seconds: float) -> Answer:
        deadlines.thread.deadline = deadline = time.monotonic() + seconds
        content = bytearray()
        with self._http.stream(**request, timeout=_timeout(seconds)) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if time.monotonic() > deadline:  # for a transport that ignores the deadline
                    raise httpx.ReadTimeout("the answer is not complete")
        return Answer(response.status_code, response.headers, bytes(content))

    async def sleep(self, seconds: float) -> None:
        stop: threading.Event | None = getattr(_thread, "stop", None)
        if stop is None:
            time.sleep(seconds)
        elif stop.wait(seconds):
            raise Stopped

    async def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Awaitable[T]:
        return _Started(coroutine)

    async def cancel(self, started: Iterable[_Started[Any]]) -> None:
        for one in started:
            one.stop.set()

    async def close(self) -> None:
        self._http.close()


_thread: Final = threading.local()  # `stop`: an event, set when its result is no longer needed


class _Started(Awaitable[T]):
    """Run a coroutine on its own thread. Awaiting it blocks the calling thread.

    The thread is a daemon: a caller that abandons a stream does not wait for its requests.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.stop = threading.Event()
        self._outcome: Future[T] = Future()
        threading.Thread(target=self._run, args=(coroutine,), daemon=True).start()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._outcome.result()
        yield  # makes this a generator, as __await__ must be

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> None:
        _thread.stop = self.stop
        try:
            self._outcome.set_result(run(coroutine))
        except BaseException as error:  # noqa: BLE001  the awaiting thread raises it
            self._outcome.set_exception(error)


def run(coroutine: Any) -> Any:
    """Run a coroutine that never suspends and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a coroutine of the blocking client suspended, but there is no event loop")


@cache
def _tls() -> ssl.SSLContext:
    """Load the trusted certificates once, because that takes longer than a request."""
    return httpx.create_ssl_context()


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))
