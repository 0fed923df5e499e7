"""How both clients behave on broken, slow and unreachable connections."""

from __future__ import annotations

import time

import pytest

from router_client import VisionEncoderConnectionError, VisionEncoderTimeout
from tests.support.router_client.asking import EMBEDDED, Ask, both
from tests.support.serving import free_port
from tests.support.wire import answer, wire


@both
def test_a_closed_connection_is_retried_only_if_that_is_safe(ask: Ask) -> None:
    with wire(None, answer(200, EMBEDDED)) as told:
        assert list(ask(lambda c: c.embed_text("a"), told.url)) == [1.0, 2.0]
        assert len(told.requests) == 2
    with wire(None) as told:
        with pytest.raises(VisionEncoderConnectionError, match="closed the connection") as caught:
            ask(lambda c: c.delete_image("a"), told.url)
        assert caught.value.code == "connection_cut"
        assert len(told.requests) == 1


@both
def test_an_answer_that_cannot_be_decoded_is_a_connection_error(ask: Ask) -> None:
    garbled = answer(200, EMBEDDED, "Content-Encoding: gzip")
    with wire(garbled) as told, pytest.raises(VisionEncoderConnectionError):
        ask(lambda c: c.embed_text("a"), told.url, max_retries=0)


@both
def test_a_truncated_answer_is_a_connection_error(ask: Ask) -> None:
    with wire(answer(200, EMBEDDED)[:-5]) as told, pytest.raises(VisionEncoderConnectionError):
        ask(lambda c: c.embed_text("a"), told.url, max_retries=0)


@both
def test_a_slow_body_ends_at_the_timeout(ask: Ask) -> None:
    whole = answer(200, {"embedding": [0.0] * 100})
    drips = [whole[i : i + 5] for i in range(0, len(whole), 5)]  # takes about 12 s
    with wire(drips) as told:
        started = time.monotonic()
        with pytest.raises(VisionEncoderTimeout, match=r"within 0\.1 s; VISION_ENCODER_TIMEOUT"):
            ask(lambda c: c.embed_text("a"), told.url, timeout=0.1)
        assert time.monotonic() - started < 8


@both
def test_a_slow_head_ends_at_the_timeout(ask: Ask) -> None:
    head = b"HTTP/1.1 200 X\r\n" + b"X-Name: value\r\n" * 13  # takes about 10 s, then ends
    with (
        wire([head[i : i + 2] for i in range(0, len(head), 2)]) as told,
        pytest.raises(VisionEncoderTimeout),
    ):
        ask(lambda c: c.embed_text("a"), told.url, timeout=0.1, max_retries=0)


@both
def test_an_unreachable_service_is_named_with_its_address(ask: Ask) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(VisionEncoderConnectionError, match=f"answers at {url}.*make serve"):
        ask(lambda c: c.health(), url)


@both
def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with wire(answer(200, EMBEDDED)) as told:
        assert list(ask(lambda c: c.embed_text("a"), told.url)) == [1.0, 2.0]
