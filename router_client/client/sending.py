"""Sending a request until it is answered: attempts, back-off, time-outs, errors."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable
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
from router_client.client.waiting import Answer, Waiting

_FIRST_PAUSE: Final = 0.25  # seconds; doubles
_LONGEST_PAUSE: Final = 8.0
_UNTOUCHED: Final = frozenset({"unreachable", "not_ready"})  # nothing was carried out
# what a text that is no text, a number or a host that is none, or nesting without end end in
_UNSENDABLE: Final = (ValueError, TypeError, OverflowError, RecursionError)
_PERMANENT: Final = frozenset({"search_disabled", "store_locked"})  # 503, and will stay so

T = TypeVar("T")


class Sender:
    """Sends requests to one service and turns what is no success into a `VisionEncoderError`.

    A request is given up when `timeout` seconds are over, attempts and pauses taken together.
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
        """Send a request and return what `read` makes of its answer.

        Unless it goes `once`, it is sent again when it was surely not carried out, or when it is
        `safe` to carry it out twice.
        """
        deadline = time.monotonic() + self._timeout
        request = {"method": method, "url": path, **request}
        for attempt in itertools.count():
            try:
                answer = await self._send(request, deadline - time.monotonic())
                break
            except VisionEncoderError as error:
                pause = _pause(attempt, error.retry_after)
                late = time.monotonic() + pause >= deadline
                if once or late or attempt == self._max_retries or not _may_pass(error, safe):
                    raise
            await self.waiting.sleep(pause)
        return self._understood(answer, read)

    async def _send(self, request: dict[str, Any], seconds: float) -> Answer:
        """Send a request once and return the answer, which is a success."""
        where = f"the vision encoder at {self._base_url}"
        if self.closed:
            raise VisionEncoderError("this client is closed", code="closed")
        try:
            answer = await self.waiting.send(request, max(seconds, 0.001))
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
            # not the error itself: it may quote the key
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
        except Exception:  # whatever reading an arbitrary body may raise
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
        message, code = str(body["error"]), str(body["code"])
    except (ValueError, KeyError, TypeError, RecursionError):  # it was not the service
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


def _may_pass(error: VisionEncoderError, safe: bool) -> bool:
    """Say whether the same request may be sent again, and may have success a little later."""
    if error.status == 429 or error.code in _UNTOUCHED:
        return True
    passing = isinstance(error, VisionEncoderConnectionError) or error.status in (502, 503, 504)
    return passing and safe and error.code not in _PERMANENT


def _pause(attempt: int, asked: float | None) -> float:
    """Return the seconds before the next attempt: at least what was asked, never all at once."""
    longest = min(_FIRST_PAUSE * float(2**attempt), _LONGEST_PAUSE)
    usual = random.uniform(longest / 2, longest)
    return usual if asked is None else max(usual, asked + random.uniform(0, min(1.0, asked / 4)))


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _excerpt(answer: Answer) -> str:
    """Return the beginning of an answer as one line."""
    text = " ".join(answer.content[:400].decode(errors="replace").split())
    return f"{text[:120]!r}" if text else "nothing"
