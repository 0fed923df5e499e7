"""The served service: every route, what it answers and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import psutil
import pytest
from openai import NotFoundError, OpenAI
from PIL import Image

from bento import Encoder
from bento.version import VERSION
from rag import identity_of
from rag.pictures.index import point_id
from tests.conftest import (
    BUNDLED,
    ROOT,
    Reference,
    Server,
    file_bytes,
    free_port,
    scene_image,
    serving,
)


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def embedding(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return np.array(response.json()["embedding"])


def assert_same(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_health_names_the_device_and_the_model(http: httpx.Client) -> None:
    answer = http.get("/health").json()
    assert answer["status"] == "healthy"
    assert answer["device"] == "cpu"
    assert answer["model"] == f"{BUNDLED}/local"
    assert answer.keys() == {"status", "device", "model", "cuda_available", "gpu_name"}


def test_info_tells_the_model_and_the_limits(http: httpx.Client, encoder: Encoder) -> None:
    info = http.get("/info").json()
    assert info["model_name"] == BUNDLED
    assert info["embedding_dim"] == encoder.embedding_dim
    assert info["context_length"] == 128
    assert info["weights_digest"] == encoder.weights_digest
    assert info["normalize_default"] is True
    assert info["qdrant_enabled"] is True
    assert info["collection"] == "daarion_images"
    assert info["version"] == VERSION


@pytest.mark.parametrize("normalize", [None, True, False])
def test_a_text_gives_the_embedding_of_open_clip(
    http: httpx.Client, encoder: Encoder, reference: Reference, normalize: bool | None
) -> None:
    body = {"text": "a small red circle"} | ({} if normalize is None else {"normalize": normalize})
    response = http.post("/embed/text", json=body)
    wanted = reference.text("a small red circle", normalize is not False)
    assert_same(embedding(response), wanted)
    answer = response.json()
    assert answer["dimension"] == encoder.embedding_dim
    assert answer["normalized"] is (normalize is not False)
    assert answer["model"] == f"{BUNDLED}/local"


@pytest.mark.parametrize("normalize", [None, False])
def test_an_image_gives_the_embedding_of_open_clip_by_every_route(
    http: httpx.Client, reference: Reference, normalize: bool | None
) -> None:
    data = file_bytes(scene_image(1), "JPEG")
    wanted = reference.image(Image.open(io.BytesIO(data)), normalize is not False)
    choice = {} if normalize is None else {"normalize": normalize}
    bare = http.post("/embed/image", json={"image_base64": encoded(data), **choice})
    assert_same(embedding(bare), wanted)
    uri = f"data:image/jpeg;base64,{encoded(data)}"
    assert_same(embedding(http.post("/embed/image", json={"image_base64": uri, **choice})), wanted)
    form = {} if normalize is None else {"normalize": "false"}
    upload = http.post("/embed/image/upload", files={"file": ("a.jpg", data)}, data=form)
    assert_same(embedding(upload), wanted)


def test_many_at_once_get_the_embeddings_that_they_get_alone(
    http: httpx.Client, reference: Reference
) -> None:
    images = [file_bytes(scene_image(seed)) for seed in range(16)]
    texts = [f"{seed} blue stars" for seed in range(16)]

    def ask(i: int) -> tuple[Any, Any]:
        text = http.post("/embed/text", json={"text": texts[i]})
        image = http.post("/embed/image/upload", files={"file": images[i]})
        return embedding(text), embedding(image)

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(16)))
    for i, (text, image) in enumerate(answers):
        assert_same(text, reference.text(texts[i], True))
        assert_same(image, reference.image(Image.open(io.BytesIO(images[i])), True))


def test_bad_images_cost_their_neighbours_nothing(http: httpx.Client, encoder: Encoder) -> None:
    good = file_bytes(scene_image(2))
    bodies = [good, b"broken", good[:300], good, b"", good]

    def ask(data: bytes) -> httpx.Response:
        return http.post("/embed/image/upload", files={"file": data})

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(ask, bodies))
    assert [a.status_code for a in answers] == [200, 415, 400, 200, 400, 200]
    wanted = encoder.encode_images([good])[0]
    for answer in (answers[0], answers[3], answers[5]):
        assert_same(embedding(answer), wanted)


PNG = encoded(file_bytes(scene_image(3)))

REFUSED: list[tuple[str, Any, int, str, str]] = [
    ("/embed/text", {}, 400, "invalid_request", "text"),
    ("/embed/text", {"text": ""}, 400, "invalid_request", "at least 1 character"),
    ("/embed/text", {"text": "  "}, 400, "invalid_request", "at least 1 character"),
    ("/embed/text", {"text": 7}, 400, "invalid_request", "string"),
    ("/embed/text", {"text": ["a"]}, 400, "invalid_request", "string"),
    ("/embed/text", {"text": "x" * 10_001}, 400, "invalid_request", "10000"),
    ("/embed/text", {"text": "a", "normalise": True}, 400, "invalid_request", "normalise"),
    ("/embed/text", {"text": "a", "normalize": "yes"}, 400, "invalid_request", "normalize"),
    ("/embed/text", [], 400, "invalid_request", ""),
    ("/embed/image", {}, 400, "invalid_request", "exactly one"),
    ("/embed/image", {"image_base64": PNG, "image_url": "http://a/b"}, 400, "invalid_request", ""),
    ("/embed/image", {"image_base64": "@@"}, 400, "invalid_request", "base64"),
    ("/embed/image", {"image_base64": ""}, 400, "invalid_request", "empty"),
    ("/embed/image", {"image_base64": "data:image/png,abc"}, 400, "invalid_request", "data:"),
    ("/embed/image", {"image_base64": PNG[:200]}, 400, "broken_image", "truncated"),
    ("/embed/image", {"image_base64": encoded(b"hello")}, 415, "not_an_image", "JPEG"),
    ("/embed/image", {"image_url": "http://127.0.0.1/a"}, 422, "url_refused", "ALLOW_IMAGE_URLS"),
    ("/embed/texts", {"texts": []}, 400, "invalid_request", "texts"),
    ("/embed/texts", {"texts": "a"}, 400, "invalid_request", "array"),
    ("/embed/texts", {"texts": ["a", ""]}, 400, "invalid_request", "texts.1"),
    ("/embed/texts", {"texts": ["a"] * 10_000}, 413, "too_large", "at most 1,000"),
    ("/rank", {"image": {"image_base64": PNG}, "texts": []}, 400, "invalid_request", "texts"),
    ("/rank", {"texts": ["a"]}, 400, "invalid_request", "image"),
    ("/rank", {"image": {"image_base64": PNG[:200]}, "texts": ["a"]}, 400, "broken_image", ""),
    ("/v1/embeddings", {"model": "gpt", "input": "a"}, 404, "model_not_found", BUNDLED),
    ("/v1/embeddings", {"input": "a"}, 400, "invalid_request", "model"),
    ("/v1/embeddings", {"model": BUNDLED, "input": []}, 400, "invalid_request", "input"),
    ("/v1/embeddings", {"model": BUNDLED, "input": [1, 2]}, 400, "invalid_request", "token ids"),
    ("/v1/embeddings", {"model": BUNDLED, "input": [[1]]}, 400, "invalid_request", "token ids"),
    ("/v1/embeddings", {"model": BUNDLED, "input": [None]}, 400, "invalid_request", "input"),
    ("/v1/embeddings", {"model": BUNDLED, "input": [{}]}, 400, "invalid_request", "exactly one"),
    ("/v1/embeddings", {"model": BUNDLED, "input": ["a", " "]}, 400, "invalid_request", "input"),
    ("/v1/embeddings", {"model": BUNDLED, "input": ["a"] * 1001}, 413, "too_large", "1,000"),
    ("/v1/embeddings", {"model": BUNDLED, "input": [{}] * 1001}, 413, "too_large", "1,001 inputs"),
    (
        "/v1/embeddings",
        {"model": BUNDLED, "input": ["a", "data:image/png;base64,AAAA"]},
        400,
        "invalid_request",
        "input 1",
    ),
    (
        "/v1/embeddings",
        {"model": BUNDLED, "input": [{"image": "http://127.0.0.1/a"}]},
        422,
        "url_refused",
        "ALLOW_IMAGE_URLS",
    ),
    (
        "/v1/embeddings",
        {"model": BUNDLED, "input": "a", "dimensions": 129},
        400,
        "invalid_request",
        "128 at most",
    ),
    (
        "/v1/embeddings",
        {"model": BUNDLED, "input": "a", "encoding_format": "hex"},
        400,
        "invalid_request",
        "base64",
    ),
    ("/search", {}, 400, "invalid_request", "give a text, an image or both"),
    ("/search", {"text": ["a", ""]}, 400, "invalid_request", "text.1"),
    ("/search", {"image": {"id": "1", "image_url": "x"}}, 400, "invalid_request", "exactly one"),
    ("/search", {"text": "a", "weights": [1, 1]}, 400, "invalid_request", "2 numbers for 1"),
    ("/search", {"text": "a", "weights": [0]}, 400, "invalid_request", "greater than 0"),
    ("/search", {"text": "a", "filter": {"most": []}}, 400, "invalid_request", "must, should"),
    ("/search", {"text": "a", "group_by": "a b"}, 400, "invalid_request", "group_by"),
    ("/search", {"text": "a", "diversity": 2}, 400, "invalid_request", "diversity"),
    (
        "/search",
        {"text": "a", "diversity": 0.5, "group_by": "tags"},
        400,
        "invalid_request",
        "cannot be combined",
    ),
    ("/search", {"image": {"image_base64": PNG[:80]}}, 400, "broken_image", "broken"),
    ("/search", {"text": "a", "top_k": 0}, 400, "invalid_request", "top_k"),
    ("/search", {"text": "a", "collection": "../x"}, 400, "invalid_request", "collection"),
    ("/images", {"image_base64": PNG}, 400, "invalid_request", "id"),
    (
        "/images",
        {"id": "1", "image_base64": PNG, "metadata": {"dao_id": "x"}},
        400,
        "invalid_request",
        "dao_id",
    ),
]


@pytest.mark.parametrize(("route", "body", "status", "code", "says"), REFUSED)
def test_unusable_input_is_refused_with_a_sentence(
    http: httpx.Client, route: str, body: Any, status: int, code: str, says: str
) -> None:
    response = http.post(route, json=body)
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert says in response.json()["error"]
    assert response.json().keys() == {"error", "code"}


def test_many_texts_get_the_embeddings_that_they_get_alone(
    http: httpx.Client, reference: Reference
) -> None:
    texts = [f"{i} large red circles" * (i % 7 + 1) for i in range(70)]
    answer = http.post("/embed/texts", json={"texts": texts, "normalize": False})
    assert answer.status_code == 200, answer.text
    assert answer.json()["dimension"] == 128
    assert answer.json()["normalized"] is False
    for text, row in zip(texts, answer.json()["embeddings"], strict=True):
        assert_same(row, reference.text(text, False))


def test_one_broken_image_among_31_costs_them_nothing(http: httpx.Client, encoder: Encoder) -> None:
    images = [file_bytes(scene_image(seed)) for seed in range(32)]
    images[7] = images[7][:200]
    files = [("files", (f"{i}.png", data)) for i, data in enumerate(images)]
    answer = http.post("/embed/images", files=files)
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"embeddings", "errors", "dimension", "model", "normalized"}
    (error,) = answer.json()["errors"]
    assert (error["index"], error["code"]) == (7, "broken_image")
    assert "truncated" in error["error"]
    rows = answer.json()["embeddings"]
    assert rows.pop(7) is None
    assert_same(rows, encoder.encode_images(images[:7] + images[8:]))


def test_one_file_of_another_type_costs_the_pictures_nothing(
    http: httpx.Client, encoder: Encoder
) -> None:
    good, other = file_bytes(scene_image(1)), ("a.txt", b"hello", "text/plain")
    files = [("files", it) for it in (other, ("a.png", good), ("b.png", b"hello"), other)]
    answer = http.post("/embed/images", files=files)
    assert answer.status_code == 200, answer.text
    first, row, *rest = answer.json()["embeddings"]
    assert [first, *rest] == [None] * 3
    assert_same(row, encoder.encode_images([good])[0])
    assert [(error["index"], error["code"]) for error in answer.json()["errors"]] == [
        (0, "unsupported_media_type"),
        (2, "not_an_image"),
        (3, "unsupported_media_type"),
    ]


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        ({"files": [("file", b"x")]}, 400, "file"),
        ({"files": {"files": (None, "text")}}, 400, "named files"),
        ({"data": {"files": "text"}}, 415, "multipart/form-data"),
        ({"json": {}}, 415, "multipart/form-data"),
        ({"files": [("files", b"x")], "data": {"normalize": "maybe"}}, 400, "normalize"),
        ({"files": [("files", b"x")] * 1001}, 413, "1,000 images"),
    ],
)
def test_an_unusable_upload_of_many_is_refused(
    http: httpx.Client, request_: dict[str, Any], status: int, says: str
) -> None:
    response = http.post("/embed/images", **request_)
    assert response.status_code == status, response.text
    assert says in response.json()["error"]


def test_every_embedding_route_answers_as_npy(http: httpx.Client) -> None:
    data = file_bytes(scene_image(4))
    form = {"files": {"file": data}}
    for route, request, shape in (
        ("/embed/text", {"json": {"text": "a"}}, (128,)),
        ("/embed/texts", {"json": {"texts": ["a", "b"]}}, (2, 128)),
        ("/embed/image", {"json": {"image_base64": encoded(data)}}, (128,)),
        ("/embed/image/upload", form, (128,)),
        ("/embed/images", {"files": [("files", data)] * 3}, (3, 128)),
        ("/v1/embeddings", {"json": {"model": BUNDLED, "input": ["a", "b"]}}, (2, 128)),
    ):
        answer = http.post(route, headers={"Accept": "application/x-npy"}, **request)
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"] == "application/x-npy"
        array = np.load(io.BytesIO(answer.content), allow_pickle=False)
        assert (array.dtype, array.shape) == (np.float32, shape)
        json_answer = http.post(route, **request).json()
        rows = json_answer.get("embedding") or json_answer.get("embeddings")
        rows = rows or [item["embedding"] for item in json_answer["data"]]
        assert_same(array, np.array(rows, np.float32))


def test_a_bad_image_is_a_row_of_nan_in_npy(http: httpx.Client) -> None:
    files = [("files", file_bytes(scene_image(4))), ("files", b"text")]
    answer = http.post("/embed/images", files=files, headers={"Accept": "application/x-npy"})
    array = np.load(io.BytesIO(answer.content))
    assert np.isfinite(array[0]).all()
    assert np.isnan(array[1]).all()


def test_rank_is_zero_shot_classification(http: httpx.Client, reference: Reference) -> None:
    image = scene_image(1)
    texts = ["a large red circle", "a small blue square", "a green star", "a green star"]
    body = {"image": {"image_base64": encoded(file_bytes(image))}, "texts": texts}
    answer = http.post("/rank", json=body).json()
    vector = reference.image(image, True)
    cosines = np.array([float(reference.text(text, True) @ vector) for text in texts])
    wanted = np.exp(cosines * float(reference.model.logit_scale.detach().exp()))
    wanted /= wanted.sum()
    order = np.argsort(-cosines, kind="stable")
    assert [entry["text"] for entry in answer["ranking"]] == [texts[i] for i in order]
    np.testing.assert_allclose(
        [entry["probability"] for entry in answer["ranking"]], wanted[order], rtol=1e-3, atol=1e-6
    )
    assert_same([entry["score"] for entry in answer["ranking"]], cosines[order])
    assert answer["model"] == f"{BUNDLED}/local"


def test_the_openai_client_works_unmodified(
    server: Server, encoder: Encoder, reference: Reference
) -> None:
    data = file_bytes(scene_image(5))
    with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        one = client.embeddings.create(model=BUNDLED, input="a red circle")
        assert_same(one.data[0].embedding, reference.text("a red circle", True))
        # start and end of text, and a token a word
        assert (one.usage.prompt_tokens, one.usage.total_tokens) == (5, 5)
        assert one.model == encoder.model

        floats = client.embeddings.create(
            model=encoder.model, input=["a", "b " * 500], encoding_format="float", user="me"
        )
        assert [item.index for item in floats.data] == [0, 1]
        assert floats.usage.prompt_tokens == 3 + encoder.context_length
        assert_same(floats.data[1].embedding, reference.text("b " * 500, True))

        few = client.embeddings.create(model=BUNDLED, input="a red circle", dimensions=16)
        cut = np.asarray(reference.text("a red circle", True))[:16]
        assert_same(few.data[0].embedding, cut / np.linalg.norm(cut))

        uri = f"data:image/png;base64,{encoded(data)}"
        mixed: Any = ["a red circle", uri, {"text": "a star"}, {"image": uri}]
        both = client.embeddings.create(model=BUNDLED, input=mixed)
        image = reference.image(Image.open(io.BytesIO(data)), True)
        for item, wanted in zip(
            both.data,
            [reference.text("a red circle", True), image, reference.text("a star", True), image],
            strict=True,
        ):
            assert_same(item.embedding, wanted)
        assert both.usage.prompt_tokens == 5 + 4

        with pytest.raises(NotFoundError) as error:
            client.embeddings.create(model="text-embedding-3-small", input="a")
        assert "not served here" in str(error.value.body)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"null", b'{"text": "\\ud800"}'])
def test_json_that_is_none_is_refused(http: httpx.Client, content: bytes) -> None:
    response = http.post(
        "/embed/text", content=content, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400, response.text
    assert response.json()["code"] == "invalid_request"


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/vnd.bentoml+pickle", ""],
)
def test_another_content_type_is_refused(http: httpx.Client, media_type: str) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    response = http.post("/embed/text", content=b'{"text": "a"}', headers=headers)
    assert response.status_code == 415
    assert response.json()["code"] == "unsupported_media_type"
    assert "application/json" in response.json()["error"]


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"files": {"picture": b"x"}}, 400, "invalid_request"),
        ({"files": {"file": (None, "text")}}, 400, "invalid_request"),
        ({"data": {"file": "text"}}, 415, "unsupported_media_type"),
        ({"json": {}}, 415, "unsupported_media_type"),
        ({"files": {"file": b""}}, 400, "invalid_request"),
        ({"files": {"file": b"text"}}, 415, "not_an_image"),
        ({"files": {"file": b"x"}, "data": {"normalize": "maybe"}}, 400, "invalid_request"),
        ({"files": {"file": b"x"}, "data": {"other": "1"}}, 400, "invalid_request"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400, None),
    ],
)
def test_an_unusable_upload_is_refused(
    http: httpx.Client, request_: dict[str, Any], status: int, code: str | None
) -> None:
    response = http.post("/embed/image/upload", **request_)
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error", "code"}
    assert response.json()["code"] == (code or "invalid_request")


def test_a_body_over_the_limit_is_refused_with_and_without_its_length(http: httpx.Client) -> None:
    size = 65_000_000
    with_length = http.post("/embed/text", content=b"x" * size, headers=JSON)
    assert (with_length.status_code, with_length.json()["code"]) == (413, "too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(65):
            yield b" " * 1_000_000

    without = http.post("/embed/text", content=chunks(), headers=JSON)
    assert (without.status_code, without.json()["code"]) == (413, "too_large")


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/embed/text", 405, "method_not_allowed"),
        ("PUT", "/health", 405, "method_not_allowed"),
    ],
)
def test_other_routes_and_methods_have_the_same_errors(
    http: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert response.json()["code"] == code


def test_a_picture_is_indexed_found_and_forgotten(http: httpx.Client) -> None:
    data = file_bytes(scene_image(10))
    body = {
        "id": "folder/ten.png",
        "image_base64": encoded(data),
        "dao_id": "lifecycle",
        "image_path": "folder/ten.png",
        "metadata": {"title": "Ten", "tags": ["a", "b"]},
    }
    first = http.post("/images", json=body)
    assert first.status_code == 200, first.text
    assert first.json() == {
        "id": "folder/ten.png",
        "dao_id": "lifecycle",
        "collection": "daarion_images",
        "outcome": "indexed",
    }
    assert http.post("/images", json=body).json()["outcome"] == "unchanged"
    changed = {**body, "metadata": {"title": "Another"}}
    assert http.post("/images", json=changed).json()["outcome"] == "updated"

    search = {"image": {"image_base64": encoded(data)}, "dao_id": "lifecycle"}
    answer = http.post("/search", json=search).json()
    assert answer["count"] == 1
    hit = answer["hits"][0]
    assert (hit["id"], hit["path"]) == ("folder/ten.png", "folder/ten.png")
    assert hit["score"] == pytest.approx(1, abs=1e-4)
    assert hit["payload"]["title"] == "Another"
    assert hit["payload"]["dao_id"] == "lifecycle"
    assert http.post("/search", json={**search, "dao_id": "other"}).json()["hits"] == []

    wrong_tenant = http.delete("/images/folder/ten.png")
    assert wrong_tenant.json()["deleted"] is False
    gone = http.delete("/images/folder%2Ften.png", params={"dao_id": "lifecycle"})
    assert gone.json() == {"id": "folder/ten.png", "dao_id": "lifecycle", "deleted": True}
    assert http.post("/search", json=search).json()["count"] == 0


def test_an_image_that_is_none_is_not_indexed(http: httpx.Client) -> None:
    body = {"id": "bad", "image_base64": encoded(b"text"), "dao_id": "bad"}
    assert http.post("/images", json=body).status_code == 415
    assert http.post("/search", json={"text": "x", "dao_id": "bad"}).json()["hits"] == []


def test_a_search_ranks_by_cosine(http: httpx.Client, encoder: Encoder) -> None:
    images = [file_bytes(scene_image(seed)) for seed in range(20, 28)]
    for i, data in enumerate(images):
        body = {"id": str(i), "image_base64": encoded(data), "dao_id": "rank"}
        assert http.post("/images", json=body).json()["outcome"] == "indexed"
    query = "a large green star"
    cosines = encoder.encode_images(images) @ encoder.encode_texts([query])[0]
    body = {"text": query, "dao_id": "rank", "top_k": 3}
    hits = http.post("/search", json=body).json()["hits"]
    order = np.argsort(-cosines)[:3]
    assert [hit["id"] for hit in hits] == [str(i) for i in order]
    assert_same([hit["score"] for hit in hits], cosines[order])
    threshold = float(cosines[order[1]]) - 1e-4
    few = http.post("/search", json={**body, "score_threshold": threshold}).json()
    assert few["count"] == 2


def test_stats_say_what_a_collection_holds(http: httpx.Client, encoder: Encoder) -> None:
    body = {"id": "1", "image_base64": PNG, "collection": "counted"}
    assert http.post("/images", json=body).json()["collection"] == "counted"
    assert http.get("/collections/counted").json() == {
        "collection": "counted",
        "points": 1,
        "model": "local-dir:shapes/local",
        "dimension": encoder.embedding_dim,
        "generation": (generation := identity_of(encoder).generation),
        "generations": {generation: 1},
        "serving": generation,
    }
    assert http.get("/collections/none").json()["code"] == "collection_not_found"


def test_a_search_that_cannot_be_made_says_why_in_its_own_shape(http: httpx.Client) -> None:
    body = {"text": "x", "collection": "never", "language": "en"}
    answer = http.post("/search", json=body)
    assert answer.status_code == 404
    degraded = answer.json()
    assert (degraded["success"], degraded["hits"], degraded["count"]) == (False, [], 0)
    assert degraded["code"] == "collection_not_found"
    assert "vision-rag index" in degraded["error"]
    assert degraded["formatted_text"].startswith("Image search failed: there is no")


def nested(depth: int) -> str:
    """Return so many filters, each in the one before, as JSON."""
    return '{"must": [' * depth + "]}" * depth


def test_an_uploaded_picture_is_searched_by(http: httpx.Client) -> None:
    data = file_bytes(scene_image(30))
    for name, tags in (("a", ["x"]), ("b", ["y"])):
        body = {"id": name, "image_base64": encoded(data), "dao_id": "up"}
        http.post("/images", json={**body, "metadata": {"tags": tags}})
    wanted = {"dao_id": "up", "filter": {"must": [{"key": "tags", "match": {"value": "y"}}]}}
    answer = http.post("/search/upload", files={"file": data}, data={"search": json.dumps(wanted)})
    (hit,) = answer.json()["hits"]
    assert (hit["id"], answer.status_code) == ("b", 200)
    assert hit["score"] == pytest.approx(1, abs=1e-4)
    assert http.post("/search/upload", files={"file": data}).json()["count"] >= 2
    for files, search, status, says in (
        ({}, "{}", 415, "takes multipart/form-data"),
        ({"file": (None, "text")}, "{}", 400, "in a field named file"),
        ({"file": data}, "[]", 400, "no JSON object"),
        ({"file": data}, "{", 400, "no JSON object"),
        ({"file": data}, f'{{"filter": {nested(40)}}}', 400, "nested deeper than"),
        ({"file": data}, f'{{"filter": {nested(2000)}}}', 400, "no JSON object"),
        ({"file": data}, '{"top_k": 0}', 400, "top_k"),
        ({"file": data, "more": b"x"}, "{}", 400, "Too many files"),
        ({"file": b"text"}, "{}", 415, "not a picture"),
        ({"file": data}, '{"collection": "never"}', 404, "no collection 'never'"),
    ):
        refused = http.post("/search/upload", files=files, data={"search": search})
        assert refused.status_code == status, refused.text
        assert says in refused.json()["error"]


def test_what_is_known_of_a_picture_is_replaced_without_its_bytes(http: httpx.Client) -> None:
    body = {"id": "a/b", "image_base64": PNG, "dao_id": "patch", "image_path": "/old.png"}
    http.post("/images", json={**body, "metadata": {"title": "old", "n": 1}})
    who = {"dao_id": "patch"}
    moved = http.patch("/images/a%2Fb", params=who, json={"paths": ["/new.png", "/twin.png"]})
    assert moved.json() == {"id": "a/b", "dao_id": "patch", "updated": True}
    http.patch("/images/a%2Fb", params=who, json={"metadata": {"title": "new"}})
    (held,) = http.get("/collections/daarion_images/images", params=who).json()["images"]
    assert (held["path"], held["payload"]["duplicates"]) == ("/new.png", ["/twin.png"])
    assert held["payload"]["title"] == "new" and "n" not in held["payload"]
    http.patch("/images/a%2Fb", params=who, json={"paths": ["/new.png"]})
    (held,) = http.get("/collections/daarion_images/images", params=who).json()["images"]
    assert "duplicates" not in held["payload"]
    assert http.patch("/images/a%2Fb", json={"paths": []}).json()["updated"] is False
    for bad, says in (
        ("{", "JSON"),
        ('{"metadata": {"dao_id": "x"}}', "dao_id"),
        ('{"x": 1}', "x"),
    ):
        refused = http.patch("/images/a%2Fb", params=who, content=bad, headers=JSON)
        assert refused.status_code == 400 and says in refused.json()["error"]


def test_many_searches_are_answered_each_for_itself(http: httpx.Client) -> None:
    http.post("/images", json={"id": "a", "image_base64": PNG, "dao_id": "many"})
    searches = [
        {"text": "a circle", "dao_id": "many"},
        {"text": "a circle", "top_k": 0},
        {"image": {"id": "a"}, "dao_id": "nobody"},
        {"image": {"image_base64": encoded(b"text")}},
        {"text": "a circle", "collection": "never"},
        {"image": {"image_base64": PNG}, "dao_id": "many", "weights": [0.5]},
        {"text": "a circle", "filter": {"must": [{"key": "a", "match": {}}]}},
        "nothing like it",
    ]
    assert http.post("/search/batch", json={"searches": searches}).status_code == 400
    results = http.post("/search/batch", json={"searches": searches[:-1]}).json()["results"]
    assert [result["success"] for result in results] == [
        True,
        False,
        False,
        False,
        False,
        True,
        False,
    ]
    assert [result["code"] for result in results if not result["success"]] == [
        "invalid_request",
        "image_not_found",
        "not_an_image",
        "collection_not_found",
        "invalid_request",
    ]
    assert "top_k" in results[1]["error"]
    assert [hit["id"] for hit in results[0]["hits"]] == ["a"]
    assert results[5]["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert http.post("/search/batch", json={"searches": []}).status_code == 400
    assert http.post("/search/batch", json={"searches": [searches[0]] * 101}).status_code == 400


def test_what_a_collection_holds_is_listed_page_by_page(http: httpx.Client) -> None:
    for n in range(5):
        body = {"id": f"{n}", "image_base64": PNG, "dao_id": f"dao{n % 2}", "collection": "paged"}
        http.post("/images", json={**body, "image_path": f"/{n}.png", "metadata": {"n": n}})
    listed: list[Any] = []
    start: dict[str, str] = {}
    for _ in range(3):
        page = http.get("/collections/paged/images", params={"limit": "2", **start}).json()
        listed += page["images"]
        start = {"start": page["next"]}
    assert page["next"] is None
    assert sorted(image["payload"]["n"] for image in listed) == [0, 1, 2, 3, 4]
    assert {(image["id"], image["dao_id"], image["path"]) for image in listed} == {
        (f"{n}", f"dao{n % 2}", f"/{n}.png") for n in range(5)
    }
    mine = http.get("/collections/paged/images", params={"dao_id": "dao1"}).json()["images"]
    assert {image["id"] for image in mine} == {"1", "3"}
    for bad in ("0", "1001", "many", "", "-1", "9" * 5000):
        refused = http.get("/collections/paged/images", params={"limit": bad})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    unknown = http.get("/collections/paged/images", params={"generation": "ffffffff"})
    assert unknown.json()["code"] == "collection_not_found"


def test_a_staged_generation_of_the_same_model_is_the_published_one(http: httpx.Client) -> None:
    body = {"id": "1", "image_base64": PNG, "collection": "staged", "staged": True}
    assert http.post("/images", json=body).json()["outcome"] == "indexed"
    assert http.post("/search", json={"text": "x", "collection": "staged"}).status_code == 404
    published = http.post("/collections/staged/publish").json()
    assert published["replaced"] is None
    assert http.post("/search", json={"text": "x", "collection": "staged"}).json()["count"] == 1
    url = f"/collections/staged/generations/{published['generation']}"
    refused = http.delete(url)
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    assert http.delete("/collections/staged/generations/ffffffff").json()["dropped"] is False
    assert http.post("/collections/none/publish").status_code == 404


def test_a_thumbnail_comes_from_the_indexed_file_or_from_what_was_sent(
    http: httpx.Client, server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "large.png"
    scene_image(40, side=900).save(file)
    url, who = "/images/one%2Flarge.png/thumbnail", {"dao_id": "thumbs"}
    body = {"id": "one/large.png", "dao_id": "thumbs", "image_base64": encoded(file.read_bytes())}
    for path in (str(file), ""):
        assert http.post("/images", json={**body, "image_path": path}).status_code == 200
        answer = http.get(url, params=who)
        assert answer.status_code == 200 and answer.headers["Content-Type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).size == (384, 384)
        again = http.get(url, params=who, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        http.delete("/images/one%2Flarge.png", params=who)
        assert http.get(url, params=who).status_code == 404
    kept = f"thumbnails/*/*/{point_id('thumbs', 'one/large.png')}*"
    assert not list(server.log.parent.glob(kept))  # forgotten with the picture
    sent = {**body, "image_path": "large.png"}  # nothing that the service could find again
    assert http.post("/images", json=sent).status_code == 200
    assert http.get(url, params=who).status_code == 200
    assert http.get(url).status_code == 404  # of another tenant


def test_a_picture_that_loses_its_path_is_shown_from_what_was_sent(
    http: httpx.Client, tmp_path: Path
) -> None:
    file = tmp_path / "moved.png"
    scene_image(43).save(file)
    body = {"id": "moved", "dao_id": "moved", "image_base64": encoded(file.read_bytes())}
    url, who = "/images/moved/thumbnail", {"dao_id": "moved"}
    http.post("/images", json={**body, "image_path": str(file)})
    file.unlink()  # before anybody looked at it
    assert http.get(url, params=who).status_code == 404
    for outcome in ("updated", "unchanged"):
        sent = http.post("/images", json={**body, "image_path": "moved.png"})
        assert sent.json()["outcome"] == outcome
        assert http.get(url, params=who).status_code == 200


def test_a_thumbnail_shows_nothing_but_what_was_indexed(http: httpx.Client, tmp_path: Path) -> None:
    secret, public = tmp_path / "secret.png", tmp_path / "public.png"
    scene_image(41).save(secret)
    scene_image(42).save(public)
    who = {"dao_id": "thief"}
    body = {"dao_id": "thief", "image_base64": encoded(public.read_bytes())}
    for name, path in (("a", secret), ("b", tmp_path), ("c", f"{tmp_path}/x/../secret.png")):
        http.post("/images", json={**body, "id": name, "image_path": str(path)})
        answer = http.get(f"/images/{name}/thumbnail", params=who)  # of the bytes that were sent
        assert answer.status_code == 200
        shown = np.asarray(Image.open(io.BytesIO(answer.content)), np.float32)
        wanted = np.asarray(Image.open(public).convert("RGB"), np.float32)
        assert np.abs(shown - wanted).mean() < 4
    http.post("/images", json={**body, "id": "d", "image_path": str(public)})
    public.write_bytes(secret.read_bytes())  # no longer what was indexed
    gone = http.get("/images/d/thumbnail", params=who)
    assert (gone.status_code, gone.json()["code"]) == (404, "image_not_found")


def test_a_url_reaches_the_picture_that_it_names_and_no_other(http: httpx.Client) -> None:
    ids = ["abc", "abc/thumbnail", "abc/", "/abc", "a//c", "a;c", "a%2Fc", " abc ", "a/../c", "?#"]
    who, body = {"dao_id": "urls"}, {"dao_id": "urls", "image_base64": PNG}
    for name in ids:
        assert http.post("/images", json={**body, "id": name}).status_code == 200
        url = f"/images/{quote(name, safe='')}"
        changed = http.patch(url, params=who, json={"metadata": {"named": name}})
        assert (changed.json()["id"], changed.json()["updated"]) == (name, True)
        assert http.get(f"{url}/thumbnail", params=who).status_code == 200
    for path in ("abc%0A", "a%0Ac", "abc%00", "abc%C2%85", "abc%0A/thumbnail", "abc/thumbnail%0A"):
        for method in ("GET", "PATCH", "DELETE"):
            sent = {"json": {"paths": []}} if method == "PATCH" else {}
            answer = http.request(method, f"/images/{path}", params=who, **sent)
            assert answer.status_code in (400, 404, 405), (method, path, answer.text)
    refused = http.delete("/images/abc%0A", params=who).json()
    assert "control character" in refused["error"]
    held = http.get("/collections/daarion_images/images", params=who).json()["images"]
    assert sorted((image["id"], image["payload"]["named"]) for image in held) == sorted(
        zip(ids, ids, strict=True)
    )
    for name in reversed(ids):
        url = f"/images/{quote(name, safe='')}"
        assert http.delete(url, params=who).json() == {"id": name, **who, "deleted": True}


@pytest.mark.parametrize("name", ["abc\n", "a\nc", "\0", "\x7f", "\x85", "..", "n" * 1025])
def test_an_id_that_no_url_could_name_is_refused(http: httpx.Client, name: str) -> None:
    answer = http.post("/images", json={"id": name, "image_base64": PNG})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["error"].startswith("id: ")
    answer = http.post("/search", json={"image": {"id": name}})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def test_a_request_id_is_kept_or_made_and_logged(http: httpx.Client, server: Server) -> None:
    given = http.get("/health", headers={"X-Request-ID": "mine-123"})
    assert given.headers["X-Request-ID"] == "mine-123"
    bad = http.post("/embed/text", json={"text": ""}, headers={"X-Request-ID": "bad\tid"})
    made = bad.headers["X-Request-ID"]
    assert len(made) == 32
    assert logged(server, request_id="mine-123")["path"] == "/health"
    assert logged(server, request_id=made)["status"] == 400
    assert logged(server, request_id=made)["method"] == "POST"


def logged(server: Server, **wanted: str) -> dict[str, Any]:
    """Return the log's one line with these fields; it may come after the answer."""
    deadline = time.monotonic() + 10
    found: list[dict[str, Any]] = []
    while not found and time.monotonic() < deadline:
        complete = server.log.read_text().rpartition("\n")[0].splitlines()
        lines = [json.loads(line) for line in complete if line.startswith("{")]
        found = [line for line in lines if wanted.items() <= line.items()]
        time.sleep(0.05)
    (line,) = found
    return line


def test_the_start_is_logged_in_one_line(server: Server) -> None:
    start = logged(server, message="serving")
    assert start["model"] == f"{BUNDLED}/local"
    assert (start["device"], start["text"], start["image"]) == ("cpu", "float32", "float32")
    assert start["dimension"] > 0
    assert start["store"].startswith("embedded at")
    assert start["url"] == server.url


def test_a_clients_mistake_leaves_no_traceback_in_the_log(
    http: httpx.Client, server: Server
) -> None:
    http.post("/embed/text", json={"text": ""})
    http.post("/embed/image", json={"image_base64": "@@"})
    assert "Traceback" not in server.log.read_text()


def test_the_docs_are_complete_and_load_nothing_from_elsewhere(http: httpx.Client) -> None:
    assert http.get("/", follow_redirects=True).url.path == "/ui"
    page = http.get("/docs")
    assert "//" not in page.text.replace("<!DOCTYPE", "")
    for asset in ("/static_content/swagger-ui.css", "/static_content/swagger-ui-bundle.js"):
        assert asset in page.text
        assert http.get(asset).status_code == 200
    document = http.get("/openapi.json")
    assert "://" not in document.text.replace("http(s)://", "")
    paths = document.json()["paths"]
    for item in paths.values():
        for operation in item.values():
            assert operation["summary"]
            if "requestBody" in operation:  # BentoML's own error shapes are not ours
                assert operation["responses"].keys() == {"200", "default"}
    documented = {(m.upper(), path) for path, item in paths.items() for m in item}
    assert {
        ("GET", "/health"),
        ("GET", "/info"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
        ("POST", "/embed/text"),
        ("POST", "/embed/texts"),
        ("POST", "/embed/image"),
        ("POST", "/embed/image/upload"),
        ("POST", "/embed/images"),
        ("POST", "/v1/embeddings"),
        ("POST", "/rank"),
        ("POST", "/images"),
        ("PATCH", "/images/{id}"),
        ("DELETE", "/images/{id}"),
        ("POST", "/search"),
        ("GET", "/collections/{name}"),
        ("GET", "/collections/{name}/images"),
        ("POST", "/collections/{name}/publish"),
        ("DELETE", "/collections/{name}/generations/{generation}"),
        ("GET", "/images/{id}/thumbnail"),
        ("POST", "/search/batch"),
        ("GET", "/ui"),
    } <= documented


def test_metrics_count_by_declared_routes(http: httpx.Client) -> None:
    http.post("/embed/text", json={"text": "a"})
    http.post("/embed/text", content=b"a", headers={"Content-Type": "text/plain"})
    http.post("/embed/image/upload", files={"file": b"text"})
    http.delete("/images/some/long/name")
    http.get("/nowhere/at/all")
    text = http.get("/metrics").text
    for labels in (
        'method="POST",route="/embed/text",status="200"',
        'method="POST",route="/embed/text",status="415"',
        'method="POST",route="/embed/image/upload",status="415"',
        'method="DELETE",route="/images/{id:path}",status="200"',
        'method="GET",route="other",status="404"',
    ):
        assert f"vision_encoder_requests_total{{{labels}}}" in text
    assert "some/long/name" not in text
    assert "nowhere" not in text
    assert "process_resident_memory_bytes" in text
    assert 'vision_encoder_stage_seconds_count{stage="respond",tower="text"}' in text


def test_livez_answers_while_the_model_loads_and_readyz_waits(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    environment = {**os.environ, "MODEL_NAME": BUNDLED, "PORT": str(port), "DEVICE": "cpu"}
    environment["BENTOML_DO_NOT_TRACK"] = "True"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", "service:VisionEncoder"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        seen = set()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and (200, 200, 200) not in seen:
            try:
                seen.add(
                    tuple(
                        httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10).status_code
                        for path in ("/livez", "/health", "/readyz")
                    )
                )
            except httpx.TransportError:
                time.sleep(0.02)
        assert (200, 503, 503) in seen
        assert (200, 200, 200) in seen
        # without QDRANT_ENABLED a pure encoder opens no store
        refused = httpx.post(f"http://127.0.0.1:{port}/search", json={"text": "a"})
        assert (refused.status_code, refused.json()["code"]) == (503, "search_disabled")
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"MODEL_NAME": "ViT-L-99"}, "cannot load MODEL_NAME=ViT-L-99"),
        ({"MODEL_NAME": "ViT-B-32", "MODEL_PRETRAINED": "/no/weights.pt"}, "/no/weights.pt"),
        ({"MODEL_NAME": "local-dir:/no/model"}, "local-dir: needs a folder with open_clip_config"),
        ({"MODEL_NAME": BUNDLED, "DEVICE": "cuda:7"}, "DEVICE=cuda:7, but torch sees"),
    ],
)
def test_what_cannot_be_loaded_stops_the_service_with_a_sentence_and_status_1(
    setting: dict[str, str], sentence: str
) -> None:
    environment = {**os.environ, "PORT": str(free_port()), "BENTOML_DO_NOT_TRACK": "True"}
    environment["API_KEY"] = "s3cret"
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "service:VisionEncoder"],
        cwd=ROOT,
        env={**environment, **setting},
        capture_output=True,
        text=True,
        timeout=120,
    )
    (line,) = [line for line in done.stdout.splitlines() if "not serving" in line]
    assert sentence in json.loads(line)["message"]
    assert "s3cret" not in done.stdout + done.stderr
    assert done.returncode == 1


def test_a_mistake_in_the_settings_of_several_workers_is_a_sentence() -> None:
    environment = {**os.environ, "WORKERS": "2", "QDRANT_ENABLED": "true"}
    done = subprocess.run(
        [sys.executable, "-c", "import service"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "QDRANT_HOST" in done.stderr and "Traceback" not in done.stderr


def test_what_is_loaded_is_out_of_the_garbage_collectors_way() -> None:
    program = """
import gc, time
from service import VisionEncoder

service = VisionEncoder.inner()
while not service.__is_ready__():
    time.sleep(0.05)
print(gc.get_freeze_count(), len(gc.get_objects()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "MODEL_NAME": BUNDLED, "QDRANT_ENABLED": "false"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    kept, watched = map(int, done.stdout.split()[-2:])
    assert kept > 10 * watched, done.stderr


@pytest.mark.parametrize(
    ("device", "gpu"), [("cpu", None), ("auto", None), ("cuda", 1), ("cuda:1", 1)]
)
def test_a_gpu_and_the_workers_are_reserved_as_set(device: str, gpu: int | None) -> None:
    code = (
        "import json, os, service; config = service.served.config; "
        "print(json.dumps([config['resources'].get('gpu'), config['workers'], config['http'], "
        "os.environ.get('BENTOML_DISABLE_GPU_ALLOCATION')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "DEVICE": device, "WORKERS": "3", "PORT": "8123"},
        capture_output=True,
        text=True,
        check=True,
    )
    # cuda:1 must not be hidden from the worker, as BentoML's own allocation would
    kept = "1" if device == "cuda:1" else None
    assert json.loads(done.stdout) == [gpu, 3, {"host": "127.0.0.1", "port": 8123}, kept]


def test_bentomls_own_client_knows_the_json_routes(server: Server, encoder: Encoder) -> None:
    code = (
        "import bentoml, json, sys\n"
        "with bentoml.SyncHTTPClient(sys.argv[1]) as client:\n"
        "    answer = client.embed_text({'text': 'a red circle'})\n"
        "    print(json.dumps([sorted(client.endpoints), answer['embedding']]))\n"
    )
    command = [sys.executable, "-c", code, server.url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    endpoints, got = json.loads(done.stdout)
    assert endpoints == [
        "embed_image",
        "embed_text",
        "embed_texts",
        "index_image",
        "openai_embeddings",
        "rank",
        "search",
        "search_many",
    ]
    assert_same(got, encoder.encode_texts(["a red circle"])[0])


def test_a_stopped_service_leaves_no_process_and_keeps_what_it_indexed(tmp_path: Path) -> None:
    body = {"id": "kept", "image_base64": PNG}
    with serving(tmp_path) as first:
        with first.client() as http:
            assert http.post("/images", json=body).json()["outcome"] == "indexed"
        children = psutil.Process(first.pid).children(recursive=True)
        # what an impatient person presses
        os.kill(first.pid, signal.SIGINT)
        gone, alive = psutil.wait_procs(children, timeout=30)
        assert gone and not alive
    # the store was closed in order: its lock names no owner any more
    assert (tmp_path / "qdrant" / ".lock").read_text() == ""
    with serving(tmp_path) as second, second.client() as http:
        assert http.post("/images", json=body).json()["outcome"] == "unchanged"
        assert http.get("/collections/daarion_images").json()["points"] == 1


def test_a_collection_of_another_model_is_refused_and_embedding_goes_on(tmp_path: Path) -> None:
    from rag.store.edge.store import EdgeStore
    from rag.store.interface import ModelIdentity

    store = EdgeStore(tmp_path / "qdrant")
    store.open("daarion_images", ModelIdentity("ViT-B-32", "openai", "abc", "resize", 512))
    store.close()
    with serving(tmp_path) as served, served.client() as http:
        refused = http.post("/search", json={"text": "a circle"})
        assert (refused.status_code, refused.json()["code"]) == (409, "collection_mismatch")
        assert "ViT-B-32/openai" in refused.json()["error"]
        assert "vision-rag reindex" in refused.json()["error"]
        assert http.post("/embed/text", json={"text": "a circle"}).status_code == 200
        assert http.get("/readyz").status_code == 200
        assert "search is degraded" in served.log.read_text()


def test_the_idle_service_stays_below_its_memory_bound(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        resident = _resident(server)
    logging.getLogger(__name__).info("resident: %.0f MB", resident / 1e6)
    assert resident < 1.2e9


def _resident(server: Server) -> int:
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    return sum(process.memory_info().rss for process in processes)
