"""The clients: what they send, and what they give back."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bento import Encoder
from router_client import (
    AsyncVisionEncoderClient,
    InvalidInput,
    VisionEncoderClient,
    VisionEncoderConnectionError,
    VisionEncoderError,
)
from router_client.client.streaming import parts
from tests.support.paths import ROOT
from tests.support.pictures import file_bytes, scene_image
from tests.support.router_client.asking import Ask, Script, blocking, both, mock, npy, ok, refused
from tests.support.serving import Server, free_port
from tests.support.wire import answer, wire

# Against the service


@both
def test_it_embeds_as_the_encoder_does(
    server: Server, encoder: Encoder, tmp_path: Path, ask: Ask
) -> None:
    data = file_bytes(scene_image(1))
    (tmp_path / "a.png").write_bytes(data)
    text = encoder.encode_texts(["a star"], normalize=False)[0]
    image = encoder.encode_images([data])[0]
    raw = encoder.encode_images([data], normalize=False)[0]
    got = {
        "text": ask(lambda c: c.embed_text("a star", normalize=False), server.url),
        "bytes": ask(lambda c: c.embed_image_bytes(data), server.url),
        "file": ask(lambda c: c.embed_image_file(tmp_path / "a.png"), server.url),
        "raw": ask(lambda c: c.embed_image_file(str(tmp_path / "a.png"), False), server.url),
    }
    for name, expected in {"text": text, "bytes": image, "file": image, "raw": raw}.items():
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], expected, atol=1e-5, err_msg=name)


@both
def test_any_number_of_texts_keeps_its_order(server: Server, encoder: Encoder, ask: Ask) -> None:
    texts = [f"{n} red circles" for n in range(600)]
    got = ask(lambda c: c.embed_texts(texts), server.url)
    np.testing.assert_allclose(got, encoder.encode_texts(texts), atol=1e-5)
    with pytest.raises(InvalidInput, match="texts"):
        ask(lambda c: c.embed_texts([]), server.url)
    with pytest.raises(TypeError, match="list of strings"):
        ask(lambda c: c.embed_texts("a star"), server.url)


@both
def test_a_stream_of_pictures_keeps_its_order_and_bad_ones_are_errors(
    server: Server, encoder: Encoder, tmp_path: Path, ask: Ask
) -> None:
    pictures = [file_bytes(scene_image(seed, 64)) for seed in range(40)]
    expected = encoder.encode_images(pictures)
    for i, data in enumerate(pictures):
        (tmp_path / f"{i}.png").write_bytes(data)
    given: list[Any] = [data if i % 2 else tmp_path / f"{i}.png" for i, data in enumerate(pictures)]
    given[3] = b"no picture"
    given[10] = tmp_path / "nowhere.png"
    given[39] = pictures[39][:100]
    got = ask(lambda c: c.embed_images(iter(given)), server.url)
    assert len(got) == 40
    for i, outcome in enumerate(got):
        if i in (3, 10, 39):
            assert isinstance(outcome, InvalidInput)
        else:
            np.testing.assert_allclose(outcome, expected[i], atol=1e-5)
    assert (got[3].status, got[3].code) == (415, "not_an_image")
    assert got[10].args[0] == f"cannot read {tmp_path}/nowhere.png: No such file or directory"
    assert (got[39].status, got[39].code) == (400, "broken_image")
    raw = ask(lambda c: c.embed_images(pictures[:9], normalize=False), server.url)
    np.testing.assert_allclose(raw, encoder.encode_images(pictures[:9], normalize=False), atol=1e-5)


@both
def test_it_ranks(server: Server, ask: Ask) -> None:
    data = file_bytes(scene_image(1))
    ranking = ask(lambda c: c.rank(data, ["a star", "a dog", "a cat"]), server.url)
    assert len(ranking) == 3
    assert sum(text.probability for text in ranking) == pytest.approx(1, abs=1e-4)
    assert [t.score for t in ranking] == sorted((t.score for t in ranking), reverse=True)


@both
def test_urls_are_the_operators_to_allow(server: Server, ask: Ask) -> None:
    with pytest.raises(InvalidInput, match="ALLOW_IMAGE_URLS") as caught:
        ask(lambda c: c.embed_image_url("http://pictures.test/a.png"), server.url)
    assert (caught.value.status, caught.value.code) == (422, "url_refused")


@both
def test_it_indexes_searches_and_deletes(server: Server, ask: Ask) -> None:
    name = f"client-{ask.__name__}"
    data = file_bytes(scene_image(2))

    def call(given: Callable[[Any], Any]) -> Any:
        return ask(given, server.url)

    assert call(lambda c: c.health()).status == "healthy"
    assert call(lambda c: c.index_image("a/b c.png", data, collection=name)) == "indexed"
    assert call(lambda c: c.index_image("a/b c.png", data, collection=name)) == "unchanged"
    image = {"image_base64": base64.b64encode(data).decode()}
    (hit,) = call(lambda c: c.search(image=image, collection=name)).hits
    assert hit.id == "a/b c.png"
    found = call(lambda c: c.search("a star", collection=name, top_k=1, language="en"))
    assert found.formatted_text.startswith("Found 1 image:")
    others = {"text": "a star", "collection": name, "dao_id": "other"}
    nothing, missing = call(lambda c: c.search_many([others, {"text": "a", "collection": "never"}]))
    assert (nothing.success, nothing.hits) == (True, [])
    assert (missing.success, missing.code) == (False, "collection_not_found")
    changed = {"title": "A star"}
    assert call(lambda c: c.update_image("a/b c.png", collection=name, metadata=changed)) is True
    (held,) = call(lambda c: c.images(name))
    assert (held.id, held.payload["title"]) == ("a/b c.png", "A star")
    assert call(lambda c: c.delete_image("a/b c.png", collection=name)) is True
    assert call(lambda c: c.delete_image("a/b c.png", collection=name)) is False
    stats = call(lambda c: c.stats(name))
    assert stats.points == 0
    assert call(lambda c: c.publish(name)).generation == stats.generation
    assert call(lambda c: c.drop(name, "ffffffff")) is False


# Both clients are one


def test_the_blocking_client_has_the_methods_of_the_other_with_their_docs() -> None:
    def methods(of: type) -> dict[str, Any]:
        return {n: m for n, m in inspect.getmembers(of, inspect.isfunction) if n[0] != "_"}

    theirs, ours = methods(AsyncVisionEncoderClient), methods(VisionEncoderClient)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert inspect.signature(ours[name]) == inspect.signature(theirs[name])
        assert ours[name].__doc__


def test_without_numpy_embeddings_are_lists(server: Server) -> None:
    code = f"""
import sys
sys.modules["numpy"] = None
from router_client import VisionEncoderClient
with VisionEncoderClient({server.url!r}) as client:
    print([client.embed_text("a star"), client.embed_texts(["a star", "a dog"])])
    outcomes = client.embed_images([b"1", "docs/demo.png", b"2"])
    print([type(outcome).__name__ for outcome in outcomes])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    text, texts = json.loads(first)
    assert (len(text), len(texts), len(texts[1])) == (128, 2, 128)
    assert second == "['InvalidInput', 'list', 'InvalidInput']"


def test_it_can_be_used_by_many_threads_at_once(server: Server) -> None:
    texts = [f"{n} red circles" for n in range(32)]
    with VisionEncoderClient(server.url) as client:
        expected = client.embed_texts(texts)
        got: dict[int, Any] = {}

        def embed(i: int) -> None:
            got[i] = client.embed_text(texts[i])

        threads = [threading.Thread(target=embed, args=(i,)) for i in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for i, row in enumerate(expected):
        np.testing.assert_allclose(got[i], row, atol=1e-5)


# What is sent


@both
def test_a_list_is_followed_page_by_page(ask: Ask) -> None:
    pages = {None: (["a", "b"], "x"), "x": (["c"], None)}

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/collections/c/images"
        assert request.url.params["dao_id"] == "me"
        ids, following = pages[request.url.params.get("start")]
        return ok({"images": [{"id": i} for i in ids], "next": following})

    held = ask(lambda c: c.images("c", dao_id="me"), transport=mock(handler))
    assert [image.id for image in held] == ["a", "b", "c"]


@both
def test_the_address_the_timeout_and_the_key_come_from_the_environment(
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


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "")
    script = Script(ok())
    blocking(lambda c: c.embed_text("a"), transport=mock(script))
    assert "Authorization" not in script.requests[0].headers


def test_a_stream_is_cut_by_count_and_bytes() -> None:
    small, large = b"s" * 10, b"l" * 5_000_000
    cut = [len(part) for part in parts([small] * 20 + [large] * 3 + [b"h" * 9_000_000, small])]
    assert cut == [8, 8, 5, 1, 1, 1, 1]
    assert list(parts([])) == []


@both
def test_a_stream_takes_no_more_than_is_under_way(ask: Ask) -> None:
    taken, yielded = [0], []

    def pictures() -> Iterator[bytes]:
        for _ in range(400):
            taken[0] += 1
            yield b"x"

    def handler(request: httpx.Request) -> httpx.Response:
        count = request.content.count(b"filename=")
        return ok({"embeddings": [[1.0]] * count})

    def call(client: Any) -> Any:
        stream = client.embed_images(pictures())
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
    assert max(yielded) <= 9 * 8 + 1  # eight requests under way, and the one being filled


@both
def test_what_is_too_much_for_one_request_is_asked_for_singly(ask: Ask) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/embed/images":
            return refused(413, "too_large")
        return refused(413, "too_large") if b"huge" in request.content else ok()

    got = ask(lambda c: c.embed_images([b"a", b"huge", b"b"]), transport=mock(handler))
    assert [list(got[0]), list(got[2])] == [[1.0, 2.0]] * 2
    assert isinstance(got[1], InvalidInput)
    assert got[1].status == 413


# What it is given


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
def test_what_it_cannot_be_made_with_is_refused_at_once(ask: Ask, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"timeout|max_retries|API_KEY|VISION_ENC") as caught:
        ask(lambda c: c.health(), **options)
    assert "s3cret" not in str(caught.value)


@both
def test_a_key_from_a_file_may_end_in_a_newline(ask: Ask) -> None:
    script = Script(ok())
    ask(lambda c: c.embed_text("a"), api_key=" s3cret\r\n", transport=mock(script))
    assert script.requests[0].headers["Authorization"] == "Bearer s3cret"


@both
def test_a_password_in_the_address_is_in_no_error(ask: Ask) -> None:
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
def test_what_cannot_be_sent_is_an_error_of_the_client(
    ask: Ask, call: Callable[[Any], Any]
) -> None:
    script = Script(ok())
    with pytest.raises(InvalidInput):
        ask(call, transport=mock(script))
    assert script.requests == []


@both
def test_bytes_may_be_of_any_kind(ask: Ask) -> None:
    for data in (bytearray(b"abc"), memoryview(b"abc")):
        script = Script(ok(), ok())
        ask(lambda c, data=data: c.embed_image_bytes(data), transport=mock(script))
        ask(lambda c, data=data: c.embed_images([data]), transport=mock(script))
        assert all(b"abc" in request.content for request in script.requests)


@both
def test_a_closed_client_says_so(ask: Ask) -> None:
    kept = []
    ask(lambda c: (kept.append(c), c.embed_text("a"))[1], transport=mock(Script(ok())))
    with pytest.raises(VisionEncoderError, match="closed"):
        answered = kept[0].embed_text("a")
        if inspect.isawaitable(answered):
            asyncio.run(answered)  # type: ignore[arg-type]


@both
def test_fewer_texts_at_once_are_sent_where_the_service_takes_no_more(ask: Ask) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["texts"]
        if len(texts) > 10:
            return refused(413, "too_large")
        return ok({"embeddings": [[float(text)] for text in texts]})

    got = ask(lambda c: c.embed_texts([str(n) for n in range(35)]), transport=mock(handler))
    assert [row[0] for row in got] == list(range(35))
    with pytest.raises(InvalidInput):  # one text alone is too large
        refusing = mock(lambda _: refused(413, "too_large"))
        ask(lambda c: c.embed_texts(["a", "b"]), transport=refusing)


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
def test_what_is_no_embedding_is_not_returned_as_one(ask: Ask, body: Any) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        if isinstance(body, dict):
            return ok(body)
        return httpx.Response(200, content=body, headers={"Content-Type": "application/x-npy"})

    with pytest.raises(VisionEncoderError, match="Check VISION_ENCODER_URL"):
        ask(lambda c: c.embed_text("a"), transport=mock(handler))


@both
@pytest.mark.parametrize("rows", [[[], []], [1.0, 2.0], [[1.0]], "ab", [[1.0], "b"]])
def test_what_are_no_embeddings_are_not_yielded(ask: Ask, rows: Any) -> None:
    with pytest.raises(VisionEncoderError, match="Check VISION_ENCODER_URL"):
        answering = mock(lambda _: ok({"embeddings": rows}))
        ask(lambda c: c.embed_images([b"a", b"b"]), transport=answering)


@both
def test_a_redirect_is_told_with_where_to(ask: Ask) -> None:
    moved = httpx.Response(307, headers={"Location": "https://new.test/"})
    with pytest.raises(VisionEncoderError, match=r"redirects to https://new\.test/: set VISION_"):
        ask(lambda c: c.embed_text("a"), transport=mock(lambda _: moved))


def test_who_leaves_a_stream_does_not_wait_for_a_busy_service() -> None:
    busy = answer(429, {"error": "busy", "code": "busy"}, "Retry-After: 30")
    good = answer(200, {"embeddings": [[1.0]] * 8})
    with wire(*[good] * 8, busy) as told:
        code = f"""
from router_client import VisionEncoderClient
with VisionEncoderClient({told.url!r}) as client:
    for outcome in client.embed_images([b"x"] * 400):
        break
print("left")
"""
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.stdout == "left\n", done.stderr
        assert time.monotonic() - started < 20  # not the 30 of Retry-After
