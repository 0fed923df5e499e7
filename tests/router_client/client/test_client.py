"""The clients: their requests, their results, and the arguments that they reject."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from router_client import (
    AsyncVisionEncoderClient,
    InvalidInput,
    VisionEncoderClient,
    VisionEncoderConnectionError,
    VisionEncoderError,
)
from router_client.client.streaming import batches
from tests.support.router_client.asking import Ask, Script, blocking, both, mock, npy, ok, refused
from tests.support.serving import free_port

# Both clients have the same methods


def test_both_clients_have_the_same_documented_methods() -> None:
    def methods(of: type) -> dict[str, Any]:
        return {n: m for n, m in inspect.getmembers(of, inspect.isfunction) if n[0] != "_"}

    asyncio_ones, blocking_ones = methods(AsyncVisionEncoderClient), methods(VisionEncoderClient)
    assert blocking_ones
    assert blocking_ones.keys() == asyncio_ones.keys()
    for name, method in blocking_ones.items():
        assert inspect.signature(method) == inspect.signature(asyncio_ones[name])
        assert method.__doc__


# Requests


@both
def test_images_are_listed_page_by_page(ask: Ask) -> None:
    pages = {None: (["a", "b"], "x"), "x": (["c"], None)}

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/collections/c/images"
        assert request.url.params["dao_id"] == "me"
        ids, following = pages[request.url.params.get("start")]
        return ok({"images": [{"id": i} for i in ids], "next": following})

    held = ask(lambda c: c.images("c", dao_id="me"), transport=mock(handler))
    assert [image.id for image in held] == ["a", "b", "c"]


@both
def test_settings_come_from_the_environment_and_arguments_override_them(
    monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.setenv("VISION_ENCODER_URL", "http://elsewhere.test:1/api/")
    monkeypatch.setenv("VISION_ENCODER_TIMEOUT", "7")
    monkeypatch.setenv("API_KEY", "secret")
    script = Script(ok(), ok())
    ask(lambda c: c.embed_text("a"), None, transport=mock(script))
    (request,) = script.requests
    assert str(request.url) == "http://elsewhere.test:1/api/embed/text"
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.extensions["timeout"]["read"] == pytest.approx(7, abs=0.5)
    assert json.loads(request.content) == {"text": "a", "normalize": True}
    ask(lambda c: c.embed_text("a"), api_key="other", timeout=3, transport=mock(script))
    assert script.requests[1].headers["Authorization"] == "Bearer other"
    assert script.requests[1].extensions["timeout"]["read"] == pytest.approx(3, abs=0.5)


def test_no_key_is_sent_if_none_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "")
    script = Script(ok())
    blocking(lambda c: c.embed_text("a"), transport=mock(script))
    assert "Authorization" not in script.requests[0].headers


def test_a_stream_is_split_by_count_and_bytes() -> None:
    small, large = b"s" * 10, b"l" * 5_000_000
    images = [small] * 20 + [large] * 3 + [b"h" * 9_000_000, small]
    assert [len(batch) for batch in batches(images)] == [8, 8, 5, 1, 1, 1, 1]
    assert list(batches([])) == []


@both
def test_a_stream_reads_its_input_only_as_far_as_needed(ask: Ask) -> None:
    taken = [0]
    yielded: list[int] = []

    def images() -> Iterator[bytes]:
        for _ in range(400):
            taken[0] += 1
            yield b"x"

    def handler(request: httpx.Request) -> httpx.Response:
        count = request.content.count(b"filename=")
        return ok({"embeddings": [[1.0]] * count})

    def call(client: Any) -> Any:
        stream = client.embed_images(images())
        if isinstance(stream, Iterator):
            for _ in stream:
                yielded.append(taken[0] - len(yielded))
            return None

        async def each() -> None:
            async for _ in stream:
                yielded.append(taken[0] - len(yielded))

        return each()

    ask(call, transport=mock(handler))
    assert len(yielded) == 400
    assert max(yielded) <= 9 * 8 + 1  # eight batches in flight, and one being filled


@both
def test_a_rejected_batch_is_sent_again_image_by_image(ask: Ask) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/embed/images":
            return refused(413, "too_large")
        return refused(413, "too_large") if b"huge" in request.content else ok()

    got = ask(lambda c: c.embed_images([b"a", b"huge", b"b"]), transport=mock(handler))
    assert [list(got[0]), list(got[2])] == [[1.0, 2.0]] * 2
    assert isinstance(got[1], InvalidInput)
    assert got[1].status == 413


# Arguments


@both
@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("inf")},
        {"timeout": float("nan")},
        {"max_retries": -1},
        {"api_key": "ключ-s3cret"},
        {"api_key": "s3cret\x00"},
        {"url": "gpu-host:8001"},
        {"url": "http://"},
        {"url": "http://[::1"},
        {"url": ""},
    ],
)
def test_invalid_arguments_are_rejected_without_showing_the_key(
    ask: Ask, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match=r"timeout|max_retries|API_KEY|VISION_ENC") as caught:
        ask(lambda c: c.health(), **options)
    assert "s3cret" not in str(caught.value)


@both
def test_white_space_around_the_key_is_ignored(ask: Ask) -> None:
    script = Script(ok())
    ask(lambda c: c.embed_text("a"), api_key=" s3cret\r\n", transport=mock(script))
    assert script.requests[0].headers["Authorization"] == "Bearer s3cret"


@both
def test_errors_never_contain_the_password_of_the_address(ask: Ask) -> None:
    url = f"http://user:pa55@127.0.0.1:{free_port()}"
    with pytest.raises(VisionEncoderConnectionError) as caught:
        ask(lambda c: c.health(), url)
    assert "pa55" not in str(caught.value)


CALLS: list[Callable[[Any], Any]] = [
    lambda c: c.embed_text("\ud800"),
    lambda c: c.search("a", weights=[float("nan")]),
    lambda c: c.search("a", filter={"must": object()}),
    lambda c: c.delete_image("\ud800"),
    lambda c: c.embed_image_file(7),
]


@both
@pytest.mark.parametrize("call", CALLS)
def test_a_request_that_cannot_be_encoded_is_an_error(ask: Ask, call: Callable[[Any], Any]) -> None:
    script = Script(ok())
    with pytest.raises(InvalidInput):
        ask(call, transport=mock(script))
    assert script.requests == []


@both
def test_any_bytes_like_object_is_accepted(ask: Ask) -> None:
    for data in (bytearray(b"abc"), memoryview(b"abc")):
        script = Script(ok(), ok())
        ask(lambda c, data=data: c.embed_image_bytes(data), transport=mock(script))
        ask(lambda c, data=data: c.embed_images([data]), transport=mock(script))
        assert all(b"abc" in request.content for request in script.requests)


@both
def test_a_closed_client_raises_an_error(ask: Ask) -> None:
    kept: list[Any] = []

    def call(client: Any) -> Any:
        kept.append(client)
        return client.embed_text("a")

    def call_again() -> None:
        answered = kept[0].embed_text("a")
        if inspect.iscoroutine(answered):
            asyncio.run(answered)

    ask(call, transport=mock(Script(ok())))
    with pytest.raises(VisionEncoderError, match="closed") as caught:
        call_again()
    assert caught.value.code == "closed"


@both
def test_a_rejected_list_of_texts_is_halved_until_the_service_accepts_it(ask: Ask) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["texts"]
        if len(texts) > 10:
            return refused(413, "too_large")
        return ok({"embeddings": [[float(text)] for text in texts]})

    got = ask(lambda c: c.embed_texts([str(n) for n in range(35)]), transport=mock(handler))
    assert [row[0] for row in got] == list(range(35))
    rejecting = mock(lambda _: refused(413, "too_large"))
    with pytest.raises(InvalidInput):  # even one text alone is rejected
        ask(lambda c: c.embed_texts(["a", "b"]), transport=rejecting)


@both
@pytest.mark.parametrize(
    "body",
    [
        {"embedding": "abc"},
        {"embedding": None},
        {"embedding": []},
        {"embedding": [[1.0]]},
        {"embedding": ["1.0"]},
        npy(np.zeros((2, 2), np.float32)),
        npy(np.zeros(0, np.float32)),
        npy(np.array(["a"])),
        b"PK\x03\x04 no zip",
        b"[" * 100_000,
    ],
)
def test_a_malformed_embedding_is_an_error(ask: Ask, body: Any) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        if isinstance(body, dict):
            return ok(body)
        return httpx.Response(200, content=body, headers={"Content-Type": "application/x-npy"})

    with pytest.raises(VisionEncoderError) as caught:
        ask(lambda c: c.embed_text("a"), transport=mock(handler))
    assert caught.value.code == "bad_answer"


@both
@pytest.mark.parametrize("rows", [[[], []], [1.0, 2.0], [[1.0]], "ab", [[1.0], "b"]])
def test_malformed_embeddings_end_a_stream(ask: Ask, rows: Any) -> None:
    answering = mock(lambda _: ok({"embeddings": rows}))
    with pytest.raises(VisionEncoderError) as caught:
        ask(lambda c: c.embed_images([b"a", b"b"]), transport=answering)
    assert caught.value.code == "bad_answer"
