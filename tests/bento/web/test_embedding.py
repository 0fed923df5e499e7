"""Every embedding route returns the embeddings of OpenCLIP."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from openai import NotFoundError, OpenAI
from PIL import Image

from bento import Encoder
from tests.support.bento.asking import assert_same, embedding
from tests.support.paths import BUNDLED
from tests.support.pictures import encoded, file_bytes, scene_image
from tests.support.reference import Reference
from tests.support.serving import Server

pytestmark = pytest.mark.service


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


def test_concurrent_requests_get_the_same_embeddings_as_single_ones(
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


def test_bad_images_do_not_affect_concurrent_requests(http: httpx.Client, encoder: Encoder) -> None:
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


def test_many_texts_get_the_same_embeddings_as_single_ones(
    http: httpx.Client, reference: Reference
) -> None:
    texts = [f"{i} large red circles" * (i % 7 + 1) for i in range(70)]
    answer = http.post("/embed/texts", json={"texts": texts, "normalize": False})
    assert answer.status_code == 200, answer.text
    assert answer.json()["dimension"] == 128
    assert answer.json()["normalized"] is False
    for text, row in zip(texts, answer.json()["embeddings"], strict=True):
        assert_same(row, reference.text(text, False))


def test_one_broken_image_does_not_affect_the_other_31(
    http: httpx.Client, encoder: Encoder
) -> None:
    images = [file_bytes(scene_image(seed)) for seed in range(32)]
    images[7] = images[7][:200]
    files = [("files", (f"{i}.png", data)) for i, data in enumerate(images)]
    answer = http.post("/embed/images", files=files)
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"embeddings", "errors", "dimension", "model", "normalized"}
    (error,) = answer.json()["errors"]
    assert (error["index"], error["code"]) == (7, "broken_image")
    rows = answer.json()["embeddings"]
    assert rows.pop(7) is None
    assert_same(rows, encoder.encode_images(images[:7] + images[8:]))


def test_a_file_of_another_type_does_not_affect_the_pictures(
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
        # start-of-text and end-of-text tokens, and one token per word
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
        assert error.value.code == "model_not_found"


def test_bentomls_client_finds_the_json_routes(server: Server, encoder: Encoder) -> None:
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
