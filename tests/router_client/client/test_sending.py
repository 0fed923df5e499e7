"""How requests are sent: errors, retries, backoff and timeouts."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import numpy as np
import pytest

from router_client import (
    InvalidInput,
    VisionEncoderBusy,
    VisionEncoderConnectionError,
    VisionEncoderError,
    VisionEncoderUnauthorized,
)
from router_client.client.streaming import Stream
from router_client.client.waiting import run
from tests.support.router_client.asking import (
    EMBEDDED,
    Ask,
    Script,
    Unpaused,
    both,
    mock,
    ok,
    refused,
    send,
)

# Answers that are errors


@both
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidInput),
        (401, VisionEncoderUnauthorized),
        (403, VisionEncoderUnauthorized),
        (404, InvalidInput),
        (413, InvalidInput),
        (422, InvalidInput),
        (429, VisionEncoderBusy),
        (503, VisionEncoderBusy),
        (500, VisionEncoderError),
    ],
)
def test_an_error_carries_status_code_and_message(
    ask: Ask, status: int, kind: type[VisionEncoderError]
) -> None:
    script = Script(refused(status, "some_code"))
    with pytest.raises(VisionEncoderError, match=r"^what was wrong$") as caught:
        ask(lambda c: c.embed_text("a"), transport=mock(script), max_retries=0)
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code) == (status, "some_code")


@both
def test_an_error_in_openais_format_is_parsed(ask: Ask) -> None:
    error = {"message": "what was wrong", "type": "x", "param": None, "code": "model_not_found"}
    script = Script(httpx.Response(404, json={"error": error}))
    with pytest.raises(InvalidInput, match=r"^what was wrong$") as caught:
        ask(lambda c: c.call("POST", "/v1/embeddings", json={}), transport=mock(script))
    assert caught.value.code == "model_not_found"


@both
@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("soon", None), (None, None)])
def test_a_busy_error_has_the_seconds_of_retry_after(
    ask: Ask, header: str | None, seconds: float | None
) -> None:
    headers = {"Retry-After": header} if header else {}
    script = Script(refused(429, "busy", **headers))
    with pytest.raises(VisionEncoderBusy) as caught:
        ask(lambda c: c.embed_text("a"), transport=mock(script), max_retries=0)
    assert caught.value.retry_after == seconds


@both
def test_retry_after_may_be_a_date_and_is_at_most_an_hour(ask: Ask) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100))
    for header, low, high in ((soon, 90, 101), ("9" * 400, 3600, 3600), ("0", 0, 0)):
        script = Script(refused(429, "busy", **{"Retry-After": header}))
        with pytest.raises(VisionEncoderBusy) as caught:
            ask(lambda c: c.embed_text("a"), transport=mock(script), max_retries=0)
        assert caught.value.retry_after is not None
        assert low <= caught.value.retry_after <= high


@both
@pytest.mark.parametrize("status", [404, 413, 500, 502, 503])
def test_the_error_page_of_a_proxy_is_quoted(ask: Ask, status: int) -> None:
    page = httpx.Response(status, html="<html>\n<h1>nginx</h1>")
    with pytest.raises(VisionEncoderError, match=rf"HTTP {status} .*nginx") as caught:
        ask(lambda c: c.health(), transport=mock(lambda _: page))
    assert caught.value.code == "http_error"


@both
def test_a_redirect_is_an_error_with_the_target(ask: Ask) -> None:
    moved = httpx.Response(307, headers={"Location": "https://new.test/"})
    with pytest.raises(VisionEncoderError, match=r"redirects to https://new\.test/; set VISION_"):
        ask(lambda c: c.embed_text("a"), transport=mock(lambda _: moved))


@both
@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, html="<html>Sign in</html>"),
        httpx.Response(200, json=["not", "an", "object"]),
        httpx.Response(200, json={"vector": [1.0]}),
        httpx.Response(200, text='{"embedding": [1.0'),
        httpx.Response(200, content=b""),
        httpx.Response(200, content=b"\x93NUM", headers={"Content-Type": "application/x-npy"}),
        httpx.Response(200, content=b"", headers={"Content-Type": "application/x-npy"}),
    ],
)
def test_an_answer_that_is_not_from_the_service_is_an_error(
    ask: Ask, response: httpx.Response
) -> None:
    with pytest.raises(VisionEncoderError) as caught:
        ask(lambda c: c.embed_text("a"), transport=mock(lambda _: response))
    assert caught.value.code == "bad_answer"


def test_the_message_for_such_an_answer_shows_it() -> None:
    page = httpx.Response(200, html="<html>Sign in</html>")
    with pytest.raises(VisionEncoderError, match=r"200, text/html.*Sign in.*Check VISION_ENCODER"):
        send(Unpaused(lambda _: page))


@both
def test_json_that_is_nested_too_deeply_is_an_error(ask: Ask) -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(InvalidInput, match="cannot be encoded"):
        ask(lambda c: c.index_image("1", b"x", metadata=deep), transport=mock(lambda _: ok()))
    answered = httpx.Response(400, content=b"[" * 100_000)
    with pytest.raises(InvalidInput) as caught:
        ask(lambda c: c.health(), transport=mock(lambda _: answered))
    assert (caught.value.status, caught.value.code) == (400, "http_error")


@both
def test_a_pickled_array_is_not_loaded(ask: Ask) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    answered = httpx.Response(
        200, content=buffer.getvalue(), headers={"Content-Type": "application/x-npy"}
    )
    with pytest.raises(VisionEncoderError) as caught:
        ask(lambda c: c.embed_text("a"), transport=mock(lambda _: answered))
    assert caught.value.code == "bad_answer"


@both
def test_a_wrong_number_of_embeddings_is_an_error(ask: Ask) -> None:
    short = mock(lambda _: ok({"embeddings": [[1.0]]}))
    calls: list[Callable[[Any], Any]] = [
        lambda c: c.embed_texts(["a", "b"]),
        lambda c: c.embed_images([b"a", b"b"]),
    ]
    for call in calls:
        with pytest.raises(VisionEncoderError) as caught:
            ask(call, transport=short)
        assert caught.value.code == "bad_answer"


# Retries

NOT_CARRIED_OUT: list[httpx.Response | Exception] = [
    refused(429, "busy"),
    refused(503, "not_ready"),
    httpx.ConnectError("refused"),
    httpx.ConnectTimeout("no answer"),
]
PERHAPS_CARRIED_OUT: list[httpx.Response | Exception] = [
    refused(503, "store_unavailable"),
    httpx.Response(502, html="<html>"),
    httpx.Response(504, html="<html>"),
    httpx.ReadError("reset"),
    httpx.RemoteProtocolError("cut"),
]
PERMANENT: list[httpx.Response | Exception] = [
    refused(400),
    refused(401),
    refused(422),
    refused(500, "internal_error"),
    refused(503, "search_disabled"),
    refused(503, "store_locked"),
    httpx.ReadTimeout("slow"),
]


@pytest.mark.parametrize("failure", [*NOT_CARRIED_OUT, *PERHAPS_CARRIED_OUT])
def test_a_transient_failure_is_retried(failure: Any) -> None:
    script = Script(failure, ok())
    waiting = Unpaused(script)
    assert send(waiting) == EMBEDDED
    (pause,) = waiting.pauses
    assert 0.125 <= pause <= 0.25


@pytest.mark.parametrize("failure", PERMANENT)
def test_a_permanent_failure_is_not_retried(failure: Any) -> None:
    script = Script(failure, ok())
    with pytest.raises(VisionEncoderError):
        send(Unpaused(script))
    assert len(script.requests) == 1


@pytest.mark.parametrize("failure", NOT_CARRIED_OUT)
def test_an_unsafe_request_is_retried_if_it_was_not_carried_out(failure: Any) -> None:
    script = Script(failure, ok())
    assert send(Unpaused(script), safe=False) == EMBEDDED


@pytest.mark.parametrize("failure", PERHAPS_CARRIED_OUT)
def test_an_unsafe_request_is_not_retried_if_it_may_have_been_carried_out(failure: Any) -> None:
    script = Script(failure, ok())
    with pytest.raises(VisionEncoderError):
        send(Unpaused(script), safe=False)
    assert len(script.requests) == 1


CHANGES: list[Callable[[Any], Any]] = [
    lambda c: c.delete_image("a"),
    lambda c: c.publish("c"),
    lambda c: c.drop("c", "0" * 8),
]


@both
@pytest.mark.parametrize("change", CHANGES)
def test_deleting_publishing_and_dropping_are_unsafe(
    ask: Ask, change: Callable[[Any], Any]
) -> None:
    script = Script(httpx.ReadError("reset"))
    with pytest.raises(VisionEncoderConnectionError):
        ask(change, transport=mock(script))
    assert len(script.requests) == 1


@both
def test_both_clients_pause_before_a_retry(ask: Ask) -> None:
    script = Script(refused(429, "busy"), ok())
    assert list(ask(lambda c: c.embed_text("a"), transport=mock(script))) == [1.0, 2.0]
    assert 0.1 <= script.times[1] - script.times[0] < 5


def test_pauses_grow_and_retries_are_limited() -> None:
    script = Script(*[httpx.ConnectError("refused")] * 4)
    waiting = Unpaused(script)
    with pytest.raises(VisionEncoderConnectionError) as caught:
        send(waiting, max_retries=3)
    assert caught.value.code == "unreachable"
    assert len(script.requests) == 4
    for pause, longest in zip(waiting.pauses, (0.25, 0.5, 1.0), strict=True):
        assert longest / 2 <= pause <= longest


def test_pauses_have_jitter() -> None:
    steps: list[httpx.Response | Exception] = [httpx.ConnectError("refused"), ok()]
    waiting = Unpaused(Script(*steps * 20))
    for _ in range(20):
        send(waiting)
    assert max(waiting.pauses) - min(waiting.pauses) > 0.005


@pytest.mark.parametrize(("header", "low", "high"), [("1", 1, 1.25), ("0", 0.125, 0.25)])
def test_a_pause_is_at_least_retry_after_and_never_zero(
    header: str, low: float, high: float
) -> None:
    waiting = Unpaused(Script(refused(429, "busy", **{"Retry-After": header}), ok()))
    send(waiting)
    (pause,) = waiting.pauses
    assert low <= pause <= high


@both
def test_a_pause_beyond_the_timeout_fails_at_once(ask: Ask) -> None:
    script = Script(refused(429, "busy", **{"Retry-After": "5"}), ok())
    started = time.monotonic()
    with pytest.raises(VisionEncoderBusy):
        ask(lambda c: c.embed_text("a"), transport=mock(script), timeout=3)
    assert time.monotonic() - started < 2.5
    assert len(script.requests) == 1


@both
def test_health_is_not_retried(ask: Ask) -> None:
    script = Script(refused(503, "not_ready"), ok({"status": "healthy"}))
    with pytest.raises(VisionEncoderBusy):
        ask(lambda c: c.health(), transport=mock(script))
    assert len(script.requests) == 1


# Streams of images


def test_a_stream_waits_while_the_service_is_busy() -> None:
    busy = [VisionEncoderBusy("busy", status=429, retry_after=0) for _ in range(5)]

    async def one(_: bytes) -> list[float]:
        raise AssertionError("a batch must not be split because the service is busy")

    async def many(_: Sequence[bytes]) -> list[list[float]]:
        if busy:
            raise busy.pop()
        return [[1.0], [2.0]]

    waiting = Unpaused(Script())
    stream = Stream(waiting, one, many).embed([b"a", b"b"])
    assert [run(anext(stream)), run(anext(stream))] == [[1.0], [2.0]]
    with pytest.raises(StopAsyncIteration):
        run(anext(stream))
    assert waiting.pauses == [1.0] * 5


@both
def test_a_stream_raises_if_the_service_becomes_unreachable(ask: Ask) -> None:
    answered = threading.Event()

    def handler(_: httpx.Request) -> httpx.Response:
        if answered.is_set():
            raise httpx.ConnectError("refused")
        answered.set()
        return ok({"embeddings": [[1.0]] * 8})

    with pytest.raises(VisionEncoderConnectionError):
        ask(lambda c: c.embed_images([b"x"] * 500), transport=mock(handler), max_retries=0)


@both
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "failure",
    [
        httpx.ReadError("cut"),
        httpx.ReadTimeout("slow"),
        refused(503, "not_ready"),
        refused(401, "unauthorized"),
        httpx.Response(404, html="<html>"),
        httpx.Response(502, html="<html>"),
        httpx.Response(504, html="<html>"),
        httpx.Response(200, html="<html>"),
    ],
)
def test_an_unavailable_service_is_not_reported_as_a_bad_image(
    ask: Ask, failure: Any, count: int
) -> None:
    script = mock(Script(*[failure] * 3))
    with pytest.raises(VisionEncoderError):
        ask(lambda c: c.embed_images([b"x"] * count), transport=script, max_retries=0)


@both
def test_an_image_that_makes_the_service_fail_does_not_stop_the_stream(ask: Ask) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/embed/images":
            return ok({"embeddings": [[1.0], None, [3.0]]})
        return refused(500, "internal_error")

    first, second, third = ask(lambda c: c.embed_images([b"a"] * 3), transport=mock(handler))
    assert (list(first), list(third)) == ([1.0], [3.0])
    assert (type(second), second.status) == (VisionEncoderError, 500)
