"""Send a request with retries, exponential backoff and a deadline, and map errors."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import httpx

from bento.contract.errors import (
    InvalidInput,
    VisionEncoderBusy,
    VisionEncoderConnectionError,
    VisionEncoderError,
    VisionEncoderTimeout,
    VisionEncoderUnauthorized,
)
from bento.contract.retry import retry_async
from router_client.client.requests import with_json_encoded
from router_client.client.waiting import Answer, Waiting

_FIRST_PAUSE: Final = 0.25  # seconds; each further retry doubles it
_LONGEST_PAUSE: Final = 8.0  # seconds
# After these errors the service surely did not carry out the request.
_NOT_CARRIED_OUT: Final = frozenset({"unreachable", "not_ready"})
_PERMANENT: Final = frozenset({"search_disabled", "store_locked"})  # a retry cannot help
# Raised while a request is encoded: invalid text, numbers or hosts, or too deep a nesting.
_UNSENDABLE: Final = (ValueError, TypeError, OverflowError, RecursionError)

T = TypeVar("T")


class Sender:
    """Send requests to one service. Raises a `VisionEncoderError` unless the service succeeds.

    `timeout` bounds a request with all its attempts and pauses, in seconds.
    """

    def __init__(
        self, waiting: Waiting, base_url: str, *, timeout: float, max_retries: int
    ) -> None:
        self.waiting = waiting
        self._base_url = base_url
        self._timeout = timeout
        self._max_retries = max_retries
        self.closed = False

    async def call(
        self,
        method: str,
        path: str,
        read: Callable[[Answer], T],
        *,
        safe: bool = True,
        once: bool = False,
        **request: Any,
    ) -> T:
        """Send a request and return what `read` makes of the answer.

        Retry transient errors with exponential backoff and jitter, unless `once`. A request that
        is not `safe` (idempotent) is retried only if the service surely did not carry it out.
        """
        request = {"method": method, "url": path, **request}
        deadline = time.monotonic() + self._timeout
        retries = 0 if once else self._max_retries

        def pause(error: Exception, attempts: int, _: float) -> float | None:
            if attempts > retries or not _is_retryable(error, safe=safe):
                return None
            seconds = _pause(error, attempts)
            return seconds if time.monotonic() + seconds < deadline else None

        send = partial(self._send, request, deadline)
        return self._parsed(await retry_async(send, pause, self.waiting.sleep), read)

    async def _send(self, request: dict[str, Any], deadline: float) -> Answer:
        """Send a request once and return the answer, which has a 2xx status."""
        where = f"the vision encoder at {self._base_url}"
        if self.closed:
            raise VisionEncoderError("this client is closed", code="closed")
        try:
            seconds = max(deadline - time.monotonic(), 0.001)
            answer = await self.waiting.send(with_json_encoded(request), seconds)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise VisionEncoderConnectionError(
                f"no vision encoder answers at {self._base_url}: {_reason(error)}. Start one "
                "(make serve), or set VISION_ENCODER_URL to its address",
                code="unreachable",
            ) from None
        except httpx.TimeoutException:
            raise VisionEncoderTimeout(
                f"{where} did not answer within {self._timeout:g} s; "
                "VISION_ENCODER_TIMEOUT sets this limit"
            ) from None
        except (httpx.LocalProtocolError, httpx.InvalidURL, *_UNSENDABLE) as error:
            # The text of the error may quote the API key: leave it out.
            raise InvalidInput(
                f"the request cannot be encoded ({type(error).__name__}); "
                "check its texts, numbers and ids, and that it is not nested too deeply"
            ) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise VisionEncoderConnectionError(
                f"{where} closed the connection before it had answered: {_reason(error)}"
            ) from None
        if not 200 <= answer.status < 300:
            raise _error(answer, where)
        return answer

    def _parsed(self, answer: Answer, read: Callable[[Answer], T]) -> T:
        try:
            return read(answer)
        except Exception:  # noqa: BLE001  parsing arbitrary bytes may raise anything
            media_type = answer.headers.get("Content-Type", "no content type")
            raise VisionEncoderError(
                f"{self._base_url} does not answer like a vision encoder: status {answer.status}, "
                f"{media_type}, {_excerpt(answer)}. Check VISION_ENCODER_URL",
                status=answer.status,
                code="bad_answer",
            ) from None


def _error(answer: Answer, where: str) -> VisionEncoderError:
    try:
        body = json.loads(answer.content)
        if isinstance(body["error"], dict):  # OpenAI's shape, on /v1
            body = {"error": body["error"]["message"], "code": body["error"]["code"]}
        message, code = str(body["error"]), str(body["code"])
    except (ValueError, KeyError, TypeError, RecursionError):  # not from the service
        message = f"HTTP {answer.status} from {where}: {_excerpt(answer)}"
        if 300 <= answer.status < 400:
            target = answer.headers.get("Location", "an unknown address")
            message = f"{where} redirects to {target}; set VISION_ENCODER_URL to its final address"
        code = "http_error"
    kind = VisionEncoderError
    if answer.status in (429, 503):
        kind = VisionEncoderBusy
    elif answer.status in (401, 403):
        kind = VisionEncoderUnauthorized
    elif 400 <= answer.status < 500:
        kind = InvalidInput
    return kind(message, status=answer.status, code=code, retry_after=answer.retry_after)


def _is_retryable(error: BaseException, safe: bool) -> bool:
    """Return whether a retry may succeed and cannot carry out an unsafe request twice."""
    if not isinstance(error, VisionEncoderError):
        return False
    if error.status == 429 or error.code in _NOT_CARRIED_OUT:
        return True
    transient = isinstance(error, VisionEncoderConnectionError) or error.status in (502, 503, 504)
    return transient and safe and error.code not in _PERMANENT


def _pause(error: Exception, attempts: int) -> float:
    """Return the seconds before the next attempt, with jitter and never less than Retry-After."""
    longest = min(_FIRST_PAUSE * 2.0 ** (attempts - 1), _LONGEST_PAUSE)
    backoff = _jitter(longest / 2, longest)
    asked = error.retry_after if isinstance(error, VisionEncoderError) else None
    return backoff if asked is None else max(backoff, asked + _jitter(0, min(1.0, asked / 4)))


def _jitter(low: float, high: float) -> float:
    return random.uniform(low, high)  # noqa: S311  spreads load, protects nothing


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _excerpt(answer: Answer) -> str:
    """Return the beginning of the body on one line, in quotes."""
    text = " ".join(answer.content[:400].decode(errors="replace").split())
    return f"{text[:120]!r}" if text else "an empty body"
