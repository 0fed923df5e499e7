"""Calls to a Qdrant server, with retries, a circuit breaker and readable errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Final, TypeVar

import grpc  # type: ignore[import-untyped]
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import (
    ApiException,
    ResponseHandlingException,
    UnexpectedResponse,
)

from bento.contract.errors import StoreUnavailable
from bento.contract.retry import retry

R = TypeVar("R")

# Together, these limits make a call fail after at most 19 s if the server never answers, and after
# at most 6 s if it refuses the call.
TIMEOUT_S: Final = 6
ATTEMPTS: Final = 3
FIRST_DELAY_S: Final = 0.25  # the second delay is twice as long
LONGEST_DELAY_S: Final = 3.0  # even if a busy server asks for more
# How long the circuit breaker stays open after a call without an answer. Meanwhile, calls that wait
# for a free thread fail at once, instead of running into the same timeout one after the other.
OPEN_S: Final = 1.0

_TRANSIENT: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
_TRANSIENT_HTTP: Final = frozenset({429, 502, 503, 504})
_ADVICE: Final = (
    "start it, or correct QDRANT_HOST, QDRANT_PORT, QDRANT_GRPC_PORT and QDRANT_API_KEY"
)


class NotOnServer(StoreUnavailable):
    """The server has neither a collection nor an alias of that name."""


class Calls:
    """Run calls of a client, with retries.

    The client may run in qdrant-client's local mode, as in tests. That mode is not thread-safe, so
    its calls run one at a time. It has no payload indexes; `local` tells the store so.
    """

    def __init__(
        self,
        client: QdrantClient,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        options = client.init_options
        self.local = options["location"] == ":memory:" or options["path"] is not None
        port = options["grpc_port"] if options["prefer_grpc"] else options["port"]
        self.address = (
            options["url"] or options["location"] or options["path"] or f"{options['host']}:{port}"
        )
        self._client = client
        self._sleep = sleep
        self._clock = clock
        self._closed = False
        self._breaker: tuple[float, StoreUnavailable] | None = None  # open until when, and why
        self._turn: AbstractContextManager[object] = (
            threading.RLock() if self.local else nullcontext()
        )

    def __call__(self, call: Callable[[QdrantClient], R]) -> R:
        """Make a call, and retry it up to twice if the failure is transient.

        All calls of this package are idempotent, so a retry is safe after a lost answer. Raises
        `NotOnServer` for a missing collection, and `StoreUnavailable` for any other failure.
        """
        if self._breaker and self._clock() < self._breaker[0]:
            raise StoreUnavailable(str(self._breaker[1]))
        try:
            return retry(partial(self._attempt, call), self._pause, self._sleep)
        except (grpc.RpcError, ApiException, QdrantException, ValueError) as error:
            if self._closed:  # before the call, or by another thread during it
                raise StoreUnavailable(
                    f"the connection to Qdrant at {self.address} is closed"
                ) from error
            if is_missing(error):
                raise NotOnServer(
                    f"Qdrant at {self.address} does not have this collection ({_details(error)}). "
                    "It may have been dropped: open the collection again"
                ) from error
            if isinstance(error, ValueError):
                raise  # a bug
            failure = StoreUnavailable(f"Qdrant at {self.address} {_explain(error)}")
            if _is_unanswered(error):
                self._breaker = (self._clock() + OPEN_S, failure)
            raise failure from error

    def close(self) -> None:
        """Close the connections; further calls raise `StoreUnavailable`."""
        if not self._closed:
            self._closed = True
            self._client.close()

    def _attempt(self, call: Callable[[QdrantClient], R]) -> R:
        if self._closed:
            raise ValueError("closed")  # as gRPC does
        with self._turn:
            return call(self._client)

    def _pause(self, error: Exception, attempts: int, _paused: float) -> float | None:
        if self._closed or attempts == ATTEMPTS or not is_transient(error):
            return None
        if isinstance(error, ResourceExhaustedResponse):
            return min(error.retry_after_s, LONGEST_DELAY_S)
        return FIRST_DELAY_S * attempts


def is_missing(error: Exception) -> bool:
    """Return whether a call failed because the collection does not exist."""
    if isinstance(error, grpc.RpcError):
        missing = error.code() == grpc.StatusCode.NOT_FOUND
    elif isinstance(error, UnexpectedResponse):
        missing = error.status_code == 404
    else:
        missing = isinstance(error, ValueError) and "not found" in str(error)  # local mode
    return missing and "ollection" in _details(error)  # rather than a missing point


def is_transient(error: Exception) -> bool:
    """Return whether a retry of the call may succeed."""
    if isinstance(error, grpc.RpcError):
        return error.code() in _TRANSIENT
    if isinstance(error, UnexpectedResponse):
        return error.status_code in _TRANSIENT_HTTP
    return isinstance(error, ApiException | QdrantException)  # no connection, or busy


def _is_unanswered(error: Exception) -> bool:
    """Return whether the server did not answer at all, so the call may have taken long."""
    if isinstance(error, grpc.RpcError):
        return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return isinstance(error, ResponseHandlingException)


def _explain(error: Exception) -> str:
    details = _details(error)
    if isinstance(error, ResourceExhaustedResponse):
        return f"is busy: try again in {error.retry_after_s} s ({details})"
    if isinstance(error, QdrantException):  # without a Retry-After that the client can read
        return f"is busy ({details})"
    if isinstance(error, grpc.RpcError):
        code = error.code()
        if code == grpc.StatusCode.UNAVAILABLE:
            return f"cannot be reached: {_ADVICE} ({details})"
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return "did not answer in time: try again later, or check the server's load"
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return (
                f"rejected the API key: set QDRANT_API_KEY to a key with write access ({details})"
            )
        return f"answered {code.name}: {details}"
    if isinstance(error, UnexpectedResponse):
        return f"answered {details}"
    return f"cannot be reached: {_ADVICE} ({details})"


def _details(error: Exception) -> str:
    if isinstance(error, grpc.RpcError):
        return error.details() or ""
    return str(getattr(error, "source", error))
