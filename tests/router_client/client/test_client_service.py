"""The clients against a running service."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bento import Encoder
from router_client import InvalidInput, VisionEncoderClient
from tests.support.paths import ROOT
from tests.support.pictures import file_bytes, scene_image
from tests.support.router_client.asking import Ask, both
from tests.support.serving import Server
from tests.support.wire import answer, wire

pytestmark = pytest.mark.service

TEXTS = [f"{n} red circles" for n in range(300)]  # more than one request of 256


@pytest.fixture(scope="module")
def embedded(encoder: Encoder) -> npt.NDArray[np.float32]:
    """Return the embeddings of TEXTS."""
    return np.asarray(encoder.encode_texts(TEXTS))


@both
def test_embeddings_equal_those_of_the_encoder(
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
def test_many_texts_are_embedded_in_order(
    server: Server, embedded: npt.NDArray[np.float32], ask: Ask
) -> None:
    got = ask(lambda c: c.embed_texts(TEXTS), server.url)
    np.testing.assert_allclose(got, embedded, atol=1e-5)
    with pytest.raises(InvalidInput, match="texts"):
        ask(lambda c: c.embed_texts([]), server.url)
    with pytest.raises(TypeError, match="list of strings"):
        ask(lambda c: c.embed_texts("a star"), server.url)


@both
def test_a_stream_keeps_its_order_and_yields_the_errors_of_bad_images(
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
def test_texts_are_ranked_by_score(server: Server, ask: Ask) -> None:
    data = file_bytes(scene_image(1))
    ranking = ask(lambda c: c.rank(data, ["a star", "a dog", "a cat"]), server.url)
    assert len(ranking) == 3
    assert sum(text.probability for text in ranking) == pytest.approx(1, abs=1e-4)
    assert [t.score for t in ranking] == sorted((t.score for t in ranking), reverse=True)


@both
def test_a_url_is_rejected_unless_the_operator_allows_urls(server: Server, ask: Ask) -> None:
    with pytest.raises(InvalidInput) as caught:
        ask(lambda c: c.embed_image_url("http://pictures.test/a.png"), server.url)
    assert (caught.value.status, caught.value.code) == (422, "url_refused")


@both
def test_images_are_indexed_found_updated_and_deleted(server: Server, ask: Ask) -> None:
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


def test_many_threads_can_share_a_client(server: Server, embedded: npt.NDArray[np.float32]) -> None:
    with VisionEncoderClient(server.url) as client:
        got: dict[int, Any] = {}

        def embed(i: int) -> None:
            got[i] = client.embed_text(TEXTS[i])

        threads = [threading.Thread(target=embed, args=(i,)) for i in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for i in range(32):
        np.testing.assert_allclose(got[i], embedded[i], atol=1e-5)


def test_leaving_a_stream_does_not_wait_for_a_busy_service() -> None:
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
