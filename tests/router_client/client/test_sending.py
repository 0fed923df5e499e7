"""Sending: what is made of every answer, what is tried again, and how long it takes."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
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
    VisionEncoderTimeout,
    VisionEncoderUnauthorized,
)
from tests.support.router_client.asking import (
    EMBEDDED,
    Ask,
    Script,
    blocking,
    both,
    mock,
    ok,
    refused,
)
from tests.support.serving import free_port
from tests.support.wire import answer, wire

# What is made of answers


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
def test_an_error_carries_status_code_and_sentence(
    ask: Ask, status: int, kind: type[VisionEncoderError]
) -> None:
    script = Script(refused(status, "some_code"))
    with pytest.raises(VisionEncoderError, match="what was wrong") as caught:
        ask(lambda c: c.embed_text("a"), transport=mock(script), max_retries=0)
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code) == (status, "some_code")


@both
def test_an_error_in_openais_shape_is_understood(ask: Ask) -> None:
    error = {"message": "what was wrong", "type": "x", "param": None, "code": "model_not_found"}
    script = Script(httpx.Response(404, json={"error": error}))
    with pytest.raises(InvalidInput, match=r"^what was wrong$") as caught:
        ask(lambda c: c.call("POST", "/v1/embeddings", json={}), transport=mock(script))
    assert caught.value.code == "model_not_found"


@both
@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("soon", None), (None, None)])
def test_a_busy_service_says_when_to_ask_again(
    ask: Ask, header: str | None, seconds: float | None
) -> None:
    headers = {"Retry-After": header} if header else {}
    script = Script(refused(429, "busy", **headers))
    with pytest.raises(VisionEncoderBusy) as caught:
        ask(lambda c: c.embed_text("a"), transport=mock(script), max_retries=0)
    assert caught.value.retry_after == seconds


@both
@pytest.mark.parametrize("status", [404, 413, 500, 502, 503])
def test_a_proxys_page_is_an_error_that_shows_it(ask: Ask, status: int) -> None:
    page = httpx.Response(status, html="<html>\n<h1>nginx</h1>")
    with pytest.raises(VisionEncoderError, match=rf"HTTP {status} .*nginx") as caught:
        ask(lambda c: c.health(), transport=mock(lambda _: page))
    assert caught.value.code == "http_error"


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
def test_an_answer_of_something_else_is_an_error(ask: Ask, response: httpx.Response) -> None:
    with pytest.raises(VisionEncoderError, match="Check VISION_ENCODER_URL") as caught:
        ask(lambda c: c.embed_text("a"), transport=mock(lambda _: response))
    assert caught.value.code == "bad_answer"


@both
def test_what_is_nested_too_deeply_is_an_error_of_the_client_too(ask: Ask) -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(InvalidInput, match="cannot be sent"):
        ask(lambda c: c.index_image("1", b"x", metadata=deep), transport=mock(lambda _: ok()))
    answered = httpx.Response(400, content=b"[" * 100_000)
    with pytest.raises(InvalidInput, match="HTTP 400"):
        ask(lambda c: c.health(), transport=mock(lambda _: answered))


@both
def test_an_array_that_would_run_code_is_not_loaded(ask: Ask) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    answered = httpx.Response(
        200, content=buffer.getvalue(), headers={"Content-Type": "application/x-npy"}
    )
    with pytest.raises(VisionEncoderError, match="Check VISION_ENCODER_URL"):
        ask(lambda c: c.embed_text("a"), transport=mock(lambda _: answered))


@both
def test_fewer_embeddings_than_asked_for_are_an_error(ask: Ask) -> None:
    short = mock(lambda _: ok({"embeddings": [[1.0]]}))
    with pytest.raises(VisionEncoderError, match="Check VISION_ENCODER_URL"):
        ask(lambda c: c.embed_texts(["a", "b"]), transport=short)
    with pytest.raises(VisionEncoderError, match="Check VISION_ENCODER_URL"):
        ask(lambda c: c.embed_images([b"a", b"b"]), transport=short)


# What is tried again


@both
@pytest.mark.parametrize(
    "failure",
    [
        refused(429, "busy"),
        refused(503, "not_ready"),
        refused(503, "store_unavailable"),
        httpx.Response(502, html="<html>"),
        httpx.Response(504, html="<html>"),
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("no answer"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("cut"),
    ],
)
def test_what_may_pass_is_tried_again(ask: Ask, failure: Any) -> None:
    script = Script(failure, ok())
    assert list(ask(lambda c: c.embed_text("a"), transport=mock(script))) == [1.0, 2.0]
    assert 0.1 <= script.times[1] - script.times[0] < 5


@both
@pytest.mark.parametrize(
    "failure",
    [
        refused(400),
        refused(401),
        refused(422),
        refused(500, "internal_error"),
        refused(503, "search_disabled"),
        refused(503, "store_locked"),
        httpx.ReadTimeout("slow"),
    ],
)
def test_what_stays_so_is_not(ask: Ask, failure: Any) -> None:
    script = Script(failure, ok())
    with pytest.raises(VisionEncoderError):
        ask(lambda c: c.embed_text("a"), transport=mock(script))
    assert len(script.requests) == 1


CHANGES: list[Callable[[Any], Any]] = [
    lambda c: c.delete_image("a"),
    lambda c: c.publish("c"),
    lambda c: c.drop("c", "0" * 8),
]


@both
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("failure", "requests"),
    [
        (refused(429, "busy"), 2),
        (refused(503, "not_ready"), 2),
        (httpx.ConnectError("refused"), 2),
        (refused(503, "store_unavailable"), 1),  # perhaps it was carried out
        (httpx.ReadError("reset"), 1),
        (httpx.Response(502, html="<html>"), 1),
    ],
)
def test_what_would_answer_otherwise_is_only_repeated_if_it_was_not_carried_out(
    ask: Ask, change: Callable[[Any], Any], failure: Any, requests: int
) -> None:
    script = Script(failure, ok({"deleted": True, "dropped": True, "generation": "x"}))
    try:
        ask(change, transport=mock(script))
        assert requests == 2
    except VisionEncoderError:
        assert requests == 1
    assert len(script.requests) == requests


@both
def test_retry_after_is_honoured(ask: Ask) -> None:
    script = Script(refused(429, "busy", **{"Retry-After": "1"}), ok())
    ask(lambda c: c.embed_text("a"), transport=mock(script))
    assert 1 <= script.times[1] - script.times[0] < 5


@both
def test_nobody_waits_longer_than_the_timeout(ask: Ask) -> None:
    script = Script(refused(429, "busy", **{"Retry-After": "5"}), ok())
    started = time.monotonic()
    with pytest.raises(VisionEncoderBusy):
        ask(lambda c: c.embed_text("a"), transport=mock(script), timeout=3)
    assert time.monotonic() - started < 2.5  # five seconds would be too late: told at once
    assert len(script.requests) == 1


@both
def test_attempts_are_counted_and_their_pauses_grow(ask: Ask) -> None:
    script = Script(*[httpx.ConnectError("refused")] * 4)
    with pytest.raises(VisionEncoderConnectionError, match="refused") as caught:
        ask(lambda c: c.embed_text("a"), transport=mock(script), max_retries=3)
    assert caught.value.code == "unreachable"
    assert len(script.requests) == 4
    pauses = [b - a for a, b in zip(script.times, script.times[1:], strict=False)]
    for pause, longest in zip(pauses, (0.25, 0.5, 1.0), strict=True):
        assert longest / 2 <= pause < longest + 2


def test_pauses_differ_so_that_clients_do_not_come_back_together() -> None:
    gaps = []
    for _ in range(5):
        script = Script(httpx.ConnectError("refused"), ok())
        blocking(lambda c: c.embed_text("a"), transport=mock(script))
        gaps.append(script.times[1] - script.times[0])
    assert max(gaps) - min(gaps) > 0.005


@both
def test_health_is_asked_once(ask: Ask) -> None:
    script = Script(refused(503, "not_ready"), ok({"status": "healthy"}))
    with pytest.raises(VisionEncoderBusy):
        ask(lambda c: c.health(), transport=mock(script))
    assert len(script.requests) == 1


@both
def test_a_stream_waits_for_as_long_as_the_service_is_busy(ask: Ask) -> None:
    busy = [refused(429, "busy", **{"Retry-After": "0"})] * 5
    script = Script(*busy, ok({"embeddings": [[1.0], [2.0]]}))
    got = ask(lambda c: c.embed_images([b"a", b"b"]), transport=mock(script), max_retries=0)
    assert [list(row) for row in got] == [[1.0], [2.0]]


@both
def test_a_stream_ends_when_the_service_is_gone(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    answered = threading.Event()

    def handler(request: httpx.Request) -> httpx.Response:
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
def test_a_picture_does_not_get_the_blame_for_a_service_that_is_gone(
    ask: Ask, failure: Any, count: int
) -> None:
    with pytest.raises(VisionEncoderError):
        script = mock(Script(*[failure] * 3))
        ask(lambda c: c.embed_images([b"x"] * count), transport=script, max_retries=0)


@both
def test_what_is_wrong_with_a_picture_in_the_service_does_not_stop_the_others(ask: Ask) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/embed/images":
            return ok({"embeddings": [[1.0], None, [3.0]]})
        return refused(500, "internal_error")

    first, second, third = ask(lambda c: c.embed_images([b"a"] * 3), transport=mock(handler))
    assert (list(first), list(third)) == ([1.0], [3.0])
    assert (type(second), second.status) == (VisionEncoderError, 500)


@both
def test_a_date_in_retry_after_counts_and_none_asks_for_more_than_an_hour(ask: Ask) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100))
    for header, low, high in ((soon, 90, 101), ("9" * 400, 3600, 3600), ("0", 0, 0)):
        script = Script(refused(429, "busy", **{"Retry-After": header}))
        with pytest.raises(VisionEncoderBusy) as caught:
            ask(lambda c: c.embed_text("a"), transport=mock(script), max_retries=0)
        assert caught.value.retry_after is not None
        assert low <= caught.value.retry_after <= high


@both
def test_come_at_once_is_not_taken_at_its_word(ask: Ask) -> None:
    script = Script(refused(429, "busy", **{"Retry-After": "0"}), ok())
    ask(lambda c: c.embed_text("a"), transport=mock(script))
    assert script.times[1] - script.times[0] >= 0.1


# On the wire


@both
def test_a_cut_connection_is_repeated_where_that_is_safe(ask: Ask) -> None:
    with wire(None, answer(200, EMBEDDED)) as told:
        assert list(ask(lambda c: c.embed_text("a"), told.url)) == [1.0, 2.0]
        assert len(told.requests) == 2
    with wire(None) as told:
        with pytest.raises(VisionEncoderConnectionError, match="broke off") as caught:
            ask(lambda c: c.delete_image("a"), told.url)
        assert caught.value.code == "connection_cut"
        assert len(told.requests) == 1


@both
def test_an_answer_that_is_not_what_it_is_encoded_as_is_no_answer(ask: Ask) -> None:
    garbled = answer(200, EMBEDDED, "Content-Encoding: gzip")
    with wire(garbled, answer(200, EMBEDDED)) as told:
        assert list(ask(lambda c: c.embed_text("a"), told.url)) == [1.0, 2.0]


@both
def test_half_an_answer_is_no_answer(ask: Ask) -> None:
    whole = answer(200, EMBEDDED)
    with wire(whole[:-5], whole) as told:
        assert list(ask(lambda c: c.embed_text("a"), told.url)) == [1.0, 2.0]
        assert len(told.requests) == 2


@both
def test_an_answer_in_drips_is_given_up_in_time(ask: Ask) -> None:
    whole = answer(200, {"embedding": [0.0] * 100})
    drips = [whole[i : i + 5] for i in range(0, len(whole), 5)]  # some 12 s
    with wire(drips) as told:
        started = time.monotonic()
        with pytest.raises(VisionEncoderTimeout, match=r"within 0\.5 s \(VISION_ENCODER_TIMEOUT"):
            ask(lambda c: c.embed_text("a"), told.url, timeout=0.5)
        assert time.monotonic() - started < 8


@both
def test_a_head_in_drips_is_given_up_in_time(ask: Ask) -> None:
    head = b"HTTP/1.1 200 X\r\n" + b"X-Name: value\r\n" * 13  # some 10 s, and then it is cut off
    with (
        wire([head[i : i + 2] for i in range(0, len(head), 2)]) as told,
        pytest.raises(VisionEncoderTimeout),
    ):
        ask(lambda c: c.embed_text("a"), told.url, timeout=0.5, max_retries=0)


@both
def test_no_service_is_told_with_its_address(ask: Ask) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(VisionEncoderConnectionError, match=f"answers at {url}.*make serve"):
        ask(lambda c: c.health(), url)


@both
def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with wire(answer(200, EMBEDDED)) as told:
        assert list(ask(lambda c: c.embed_text("a"), told.url)) == [1.0, 2.0]
