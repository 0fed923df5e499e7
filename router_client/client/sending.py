"""Sending a request until it is answered: attempts, back-off, timeouts, errors."""

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

_FIRST_PAUSE: Final = 0.25  # seconds; doubles
_LONGEST_PAUSE: Final = 8.0
_UNTOUCHED: Final = frozenset({"unreachable", "not_ready"})  # nothing was carried out
# What encoding a request raises: for invalid text, numbers or hosts, or for endless nesting.
_UNSENDABLE: Final = (ValueError, TypeError, OverflowError, RecursionError)
_PERMANENT: Final = frozenset({"search_disabled", "store_locked"})  # 503s that do not pass

T = TypeVar("T")


class Sender:
    """Sends requests to one service; raises a `VisionEncoderError` for all but a success.

    `timeout` seconds bound a request, with all its attempts and pauses.
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
        """Send a request and return its answer as `read` returns it.

        Unless `once`, retry with exponential backoff and jitter: if the service surely did not
        carry the request out, or if it is `safe` (idempotent).
        """
        request = {"method": method, "url": path, **request}
        deadline = time.monotonic() + self._timeout
        retries = 0 if once else self._max_retries

        def pause(error: Exception, attempts: int, _: float) -> float | None:
            if attempts > retries or not _may_pass(error, safe=safe):
                return None
            seconds = _pause(error, attempts)
            return seconds if time.monotonic() + seconds < deadline else None

        send = partial(self._send, request, deadline)
        return self._understood(await retry_async(send, pause, self.waiting.sleep), read)

    async def _send(self, request: dict[str, Any], deadline: float) -> Answer:
        """Send a request once and return the answer, which is a success."""
        where = f"the vision encoder at {self._base_url}"
        if self.closed:
            raise VisionEncoderError("this client is closed", code="closed")
        try:
            seconds = max(deadline - time.monotonic(), 0.001)
            answer = await self.waiting.send(with_json_encoded(request), seconds)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise VisionEncoderConnectionError(
                f"no vision encoder answers at {self._base_url}: {_said(error)}. Start one "
                "(make serve), or set VISION_ENCODER_URL to where it runs",
                code="unreachable",
            ) from None
        except httpx.TimeoutException:
            raise VisionEncoderTimeout(
                f"{where} did not answer within {self._timeout:g} s (VISION_ENCODER_TIMEOUT)"
            ) from None
        except (httpx.LocalProtocolError, httpx.InvalidURL, *_UNSENDABLE) as error:
            # without its text, which may quote the key
            raise InvalidInput(f"the request cannot be sent ({type(error).__name__})") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise VisionEncoderConnectionError(
                f"{where} broke off the connection: {_said(error)}"
            ) from None
        if not 200 <= answer.status < 300:
            raise _error(answer, where)
        return answer

    def _understood(self, answer: Answer, read: Callable[[Answer], T]) -> T:
        try:
            return read(answer)
        except Exception:  # reading an arbitrary body may raise any
            media_type = answer.headers.get("Content-Type", "no content type")
            raise VisionEncoderError(
                f"{self._base_url} answered {answer.status}, but not as a vision encoder does "
                f"({media_type}): {_excerpt(answer)}. Check VISION_ENCODER_URL",
                status=answer.status,
                code="bad_answer",
            ) from None


def _error(answer: Answer, where: str) -> VisionEncoderError:
    try:
        body = json.loads(answer.content)
        if isinstance(body["error"], dict):  # OpenAI's shape, on /v1
            body = {"error": body["error"]["message"], "code": body["error"]["code"]}
        message, code = str(body["error"]), str(body["code"])
    except (ValueError, KeyError, TypeError, RecursionError):  # not an answer of the service
        message = f"HTTP {answer.status} from {where}: {_excerpt(answer)}"
        if 300 <= answer.status < 400:
            there = answer.headers.get("Location", "nowhere")
            message = f"{where} redirects to {there}: set VISION_ENCODER_URL to where it runs"
        code = "http_error"
    kind = VisionEncoderError
    if answer.status in (429, 503):
        kind = VisionEncoderBusy
    elif answer.status in (401, 403):
        kind = VisionEncoderUnauthorized
    elif 400 <= answer.status < 500:
        kind = InvalidInput
    return kind(message, status=answer.status, code=code, retry_after=answer.retry_after)


def _may_pass(error: BaseException, safe: bool) -> bool:
    """Say whether the same request may be sent again, and may succeed a little later."""
    if not isinstance(error, VisionEncoderError):
        return False
    if error.status == 429 or error.code in _UNTOUCHED:
        return True
    passing = isinstance(error, VisionEncoderConnectionError) or error.status in (502, 503, 504)
    return passing and safe and error.code not in _PERMANENT


def _pause(error: Exception, attempts: int) -> float:
    """Return the seconds before the next attempt: with jitter, at least what Retry-After asks."""
    longest = min(_FIRST_PAUSE * 2.0 ** (attempts - 1), _LONGEST_PAUSE)
    usual = random.uniform(longest / 2, longest)
    asked = error.retry_after if isinstance(error, VisionEncoderError) else None
    return usual if asked is None else max(usual, asked + random.uniform(0, min(1.0, asked / 4)))


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _excerpt(answer: Answer) -> str:
    """Return the beginning of an answer as one line."""
    text = " ".join(answer.content[:400].decode(errors="replace").split())
    return f"{text[:120]!r}" if text else "nothing"
