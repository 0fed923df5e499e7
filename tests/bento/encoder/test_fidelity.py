"""The service gives the embeddings that OpenCLIP computes in float32, one item at a time.

The tests use MODEL_NAME, MODEL_PRETRAINED and DEVICE, by default the bundled model on the CPU.
`make fidelity` runs them, and they print a table at the end.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import httpx
import numpy as np
import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg
from PIL import Image, ImageOps

from bento import Encoder, Settings
from bento.encoder.embeddings import Embeddings
from bento.encoder.images import decode_image
from models.shapes.captions import LANGUAGES, caption
from models.shapes.scenes import Scene, draw_scene, sample_scene
from tests.support.corpus import TEXTS, images
from tests.support.paths import BUNDLED
from tests.support.pictures import file_bytes
from tests.support.reference import Reference
from tests.support.serving import Server, serving

pytestmark = pytest.mark.service

# read at import, because a fixture hides these variables from the tests
MODEL_NAME: Final = os.environ.get("MODEL_NAME") or BUNDLED
MODEL_PRETRAINED: Final = os.environ.get("MODEL_PRETRAINED") or "openai"
DEVICE: Final = os.environ.get("DEVICE") or "cpu"
IS_BUNDLED: Final = MODEL_NAME == BUNDLED
only_bundled = pytest.mark.skipif(not IS_BUNDLED, reason="needs the bundled model, which is fast")

TOLERANCE: Final = 1e-5  # of each component of a normalized embedding in float32
COSINES: Final = {"float32": 0.999999, "float16": 0.9999, "bfloat16": 0.999}
SCENES: Final = 200
# The mixed load: a model that is large for a CPU gets only the small one.
SMALL_LOAD, LARGE_LOAD = (100, 200), (500, 2000)  # texts, images
CONNECTIONS: Final = 32

NPY: Final = "application/x-npy"
NAMES: Final = list(images())
# The items that are sent one at a time: short texts and long ones, some images of every kind.
SOME_TEXTS: Final = list(range(0, len(TEXTS), 3))
SOME_IMAGES: Final = [
    NAMES.index(name)
    for name in (
        *("photo", "stripes", "1x1", "4000x3000", "5000x4000", "2000x10", "10x2000", "png_1"),
        *("png_LA", "png_P_alpha_of_each_colour", "png_RGBA", "png_I;16", "jpeg_CMYK", "tiff_F"),
        *("tiff_YCbCr", "webp_RGBA", "gif_transparent", "bmp", "mpo", "exif_6"),
    )
]


def load(dtype: str) -> Encoder:
    return Encoder.load(
        Settings(
            model_name=MODEL_NAME,
            model_pretrained=MODEL_PRETRAINED,
            device=DEVICE,
            dtype=dtype,
            # 1000 workers leave one thread to each, as suits a small model
            workers=1000 if IS_BUNDLED else 1,
        )
    )


class Table:
    """Collects a row for each dtype and tower, to print at the end."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], list[str]] = {}
        self._ranking: dict[str, str] = {}

    def add(self, asked: str, tower: str, dtype: str, cosines: Any, names: Sequence[str]) -> None:
        worst = int(np.argmin(cosines))
        self.rows[asked, tower] = [
            asked,
            tower,
            dtype,
            f"{cosines[worst]:.8f}",
            f"{COSINES[dtype]:g}",
            " ".join(names[worst].split())[:24],
        ]

    def add_ranking(self, asked: str, changed: int, of: int) -> None:
        self._ranking[asked] = f"{changed} of {of}"

    def __str__(self) -> str:
        head = ["DTYPE", "tower", "computes in", "cosine >=", "allowed", "lowest in", "other best"]
        lines = [head, ["---"] * len(head)]
        for (asked, _), row in sorted(self.rows.items()):
            lines.append([*row, self._ranking.get(asked, "")])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """Give a small model one thread, and restore the number of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if IS_BUNDLED else before)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def table(pytestconfig: pytest.Config) -> Iterator[Table]:
    collected = Table()
    yield collected
    if not collected.rows:
        return
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print(f"\n\n{MODEL_NAME} on {DEVICE}, {len(TEXTS)} texts, {len(NAMES)} images:\n")
        print(collected, "\n\nother best: captions whose best image differs from float32\n")


@pytest.fixture(scope="module")
def by_hand() -> Reference:
    """Load the model as OpenCLIP's documentation does: float32, on the CPU."""
    pretrained = None if ":" in MODEL_NAME else MODEL_PRETRAINED
    trained = get_pretrained_cfg(MODEL_NAME, MODEL_PRETRAINED) or {}
    model, preprocess = open_clip.create_model_from_pretrained(
        MODEL_NAME, pretrained=pretrained, force_quick_gelu=trained.get("quick_gelu", False)
    )
    return Reference(model, preprocess, open_clip.get_tokenizer(MODEL_NAME))


@pytest.fixture(scope="module")
def decoded() -> list[Image.Image]:
    return [
        decode_image(data, max_bytes=len(data), max_pixels=100_000_000)
        for data in images().values()
    ]


@pytest.fixture(scope="module")
def text_rows(by_hand: Reference) -> Embeddings:
    rows: Embeddings = by_hand.texts(TEXTS)
    return rows


@pytest.fixture(scope="module")
def image_rows(by_hand: Reference, decoded: list[Image.Image]) -> Embeddings:
    rows: Embeddings = by_hand.images(decoded)
    return rows


@pytest.fixture(scope="module")
def exact() -> Encoder:
    return load("float32")


@pytest.fixture(scope="module", params=["float16", "bfloat16", "auto"])
def lower(request: pytest.FixtureRequest) -> tuple[str, Encoder]:
    return request.param, load(request.param)


def assert_same(
    got: Embeddings, wanted: Embeddings, names: Sequence[str], tolerance: float = TOLERANCE
) -> None:
    """Compare embeddings within a tolerance relative to their norm, and report the worst one."""
    assert got.shape == wanted.shape
    assert got.dtype == np.float32
    differences = np.abs(got - wanted).max(1) / np.linalg.norm(wanted, axis=1)
    worst = int(np.nan_to_num(differences, nan=np.inf).argmax())
    assert differences[worst] <= tolerance, f"{differences[worst]:.1e} in {names[worst][:60]!r}"


def _cosines(got: Embeddings, wanted: Embeddings) -> Any:
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# ---- the encoder


def test_these_embeddings_differ(text_rows: Embeddings, image_rows: Embeddings) -> None:
    # otherwise the tests here would not notice rows in the wrong order
    for rows in (text_rows, image_rows):
        different = np.unique(np.round(rows, 3), axis=0)
        assert len(different) > 0.6 * len(rows)


def test_plain_pictures_are_decoded_as_pillow_does(decoded: list[Image.Image]) -> None:
    upright = [f"exif_{orientation}" for orientation in range(2, 9)]
    for name in ("photo", "png_1", "png_L", "png_P", "jpeg_CMYK", "webp", "gif", "mpo", *upright):
        plain = ImageOps.exif_transpose(Image.open(io.BytesIO(images()[name]))).convert("RGB")
        assert np.array_equal(np.asarray(decoded[NAMES.index(name)]), np.asarray(plain)), name


@pytest.mark.parametrize("size", [1, 2, 3, 8, 32])
def test_texts_in_batches_of_any_size_are_embedded_as_open_clip_does(
    exact: Encoder, text_rows: Embeddings, table: Table, size: int
) -> None:
    got = np.empty_like(text_rows)
    for batch in _batches(len(TEXTS), size):
        got[batch] = exact.encode_texts([TEXTS[i] for i in batch])
    table.add("float32", "text", exact.text.dtype, _cosines(got, text_rows), TEXTS)
    assert_same(got, text_rows, TEXTS)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 32])
def test_images_in_batches_of_any_size_are_embedded_as_open_clip_does(
    exact: Encoder, image_rows: Embeddings, table: Table, size: int
) -> None:
    files = list(images().values())
    got = np.empty_like(image_rows)
    for batch in _batches(len(files), size):
        got[batch] = exact.encode_images([files[i] for i in batch])
    table.add("float32", "image", exact.image.dtype, _cosines(got, image_rows), NAMES)
    assert_same(got, image_rows, NAMES)


def test_raw_embeddings_are_those_of_open_clip(
    exact: Encoder, by_hand: Reference, decoded: list[Image.Image]
) -> None:
    got = exact.encode_texts(TEXTS, normalize=False)
    assert_same(got, by_hand.texts(TEXTS, normalize=False), TEXTS)
    pictures = [decoded[i] for i in SOME_IMAGES]
    got = exact.encode_images(pictures, normalize=False)
    assert_same(got, by_hand.images(pictures, normalize=False), [NAMES[i] for i in SOME_IMAGES])


def test_texts_in_a_lower_precision_are_close_to_float32(
    lower: tuple[str, Encoder], text_rows: Embeddings, table: Table
) -> None:
    asked, encoder = lower
    got = encoder.encode_texts(TEXTS)
    dtype = encoder.text.dtype
    cosines = _cosines(got, text_rows)
    table.add(asked, "text", dtype, cosines, TEXTS)
    assert got.dtype == np.float32
    assert dtype == asked or asked == "auto"
    assert cosines.min() >= COSINES[dtype]


def test_images_in_a_lower_precision_are_close_to_float32(
    lower: tuple[str, Encoder], image_rows: Embeddings, table: Table
) -> None:
    asked, encoder = lower
    got = encoder.encode_images(list(images().values()))
    dtype = encoder.image.dtype
    cosines = _cosines(got, image_rows)
    table.add(asked, "image", dtype, cosines, NAMES)
    assert got.dtype == np.float32
    assert dtype == asked or asked == "auto"
    assert cosines.min() >= COSINES[dtype]


class Retrieval:
    """Scenes with a caption in each language, and the best image for each caption."""

    def __init__(self, by_hand: Reference) -> None:
        rng = np.random.default_rng(2027)
        scenes: list[Scene] = []
        while len(scenes) < SCENES:
            scene = sample_scene(rng, held_out=True)
            if scene not in scenes:
                scenes.append(scene)
        self.images = [draw_scene(scene, rng) for scene in scenes]
        self.captions = [caption(scene, lang, rng) for lang in LANGUAGES for scene in scenes]
        self.best = self._best(by_hand.texts(self.captions), by_hand.images(self.images))

    def best_of(self, encoder: Encoder) -> Any:
        return self._best(encoder.encode_texts(self.captions), encoder.encode_images(self.images))

    @staticmethod
    def _best(texts: Embeddings, images: Embeddings) -> Any:
        return (texts @ images.T).argmax(1)  # (captions,)


@pytest.fixture(scope="module")
def retrieval(by_hand: Reference) -> Retrieval:
    return Retrieval(by_hand)


def test_float32_finds_the_images_that_open_clip_finds(
    exact: Encoder, retrieval: Retrieval, table: Table
) -> None:
    changed = int((retrieval.best_of(exact) != retrieval.best).sum())
    table.add_ranking("float32", changed, len(retrieval.best))
    assert changed == 0
    if IS_BUNDLED:  # it was trained for such scenes
        right = np.tile(np.arange(SCENES), len(LANGUAGES))
        assert (retrieval.best == right).mean() > 0.95


def test_the_dtype_of_auto_finds_the_images_that_float32_finds(
    lower: tuple[str, Encoder], retrieval: Retrieval, table: Table
) -> None:
    asked, encoder = lower
    changed = int((retrieval.best_of(encoder) != retrieval.best).sum())
    table.add_ranking(asked, changed, len(retrieval.best))
    # an explicit dtype may change results; `auto` must not
    assert asked != "auto" or changed == 0


def _batches(count: int, size: int) -> list[Any]:
    """Return the indices in batches, in a random order that depends on `size`."""
    order = np.random.default_rng(size).permutation(count)
    return [order[i : i + size] for i in range(0, count, size)]


# ---- the service


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        tmp_path_factory.mktemp("fidelity"),
        MODEL_NAME=MODEL_NAME,
        MODEL_PRETRAINED=MODEL_PRETRAINED,
        DEVICE=DEVICE,
        DTYPE="float32",
        QDRANT_ENABLED="false",
    ) as server:
        yield server


@pytest.fixture
def client(served: Server) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


formats = pytest.mark.parametrize("accept", ["application/json", NPY])


def ask(client: httpx.Client, route: str, accept: str, **request: Any) -> Embeddings:
    """Return the embedding or the embeddings of a response in JSON or .npy."""
    answer = client.post(route, headers={"Accept": accept}, **request)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == accept
    if accept == NPY:
        rows: Embeddings = np.load(io.BytesIO(answer.content), allow_pickle=False)
        assert rows.dtype == np.float32
        return rows
    body = answer.json()
    return np.array(body["embedding"] if "embedding" in body else body["embeddings"], np.float32)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _file(index: int) -> bytes:
    return images()[NAMES[index]]


@formats
def test_embed_text_gives_open_clips_embedding(
    client: httpx.Client, text_rows: Embeddings, accept: str
) -> None:
    got = [ask(client, "/embed/text", accept, json={"text": TEXTS[i]}) for i in SOME_TEXTS]
    assert_same(np.stack(got), text_rows[SOME_TEXTS], [TEXTS[i] for i in SOME_TEXTS])


@formats
def test_embed_texts_gives_open_clips_embeddings(
    client: httpx.Client, text_rows: Embeddings, accept: str
) -> None:
    got = ask(client, "/embed/texts", accept, json={"texts": TEXTS})
    assert_same(got, text_rows, TEXTS)


@formats
def test_embed_texts_gives_open_clips_raw_embeddings(
    client: httpx.Client, by_hand: Reference, accept: str
) -> None:
    got = ask(client, "/embed/texts", accept, json={"texts": TEXTS, "normalize": False})
    assert_same(got, by_hand.texts(TEXTS, normalize=False), TEXTS)


@formats
def test_embed_image_gives_open_clips_embedding(
    client: httpx.Client, image_rows: Embeddings, accept: str
) -> None:
    got = [
        ask(client, "/embed/image", accept, json={"image_base64": _base64(_file(i))})
        for i in SOME_IMAGES
    ]
    assert_same(np.stack(got), image_rows[SOME_IMAGES], [NAMES[i] for i in SOME_IMAGES])


@formats
def test_an_upload_gives_open_clips_embedding(
    client: httpx.Client, image_rows: Embeddings, accept: str
) -> None:
    got = [
        ask(client, "/embed/image/upload", accept, files={"file": _file(i)}) for i in SOME_IMAGES
    ]
    assert_same(np.stack(got), image_rows[SOME_IMAGES], [NAMES[i] for i in SOME_IMAGES])


@formats
def test_many_uploads_give_open_clips_embeddings(
    client: httpx.Client, image_rows: Embeddings, accept: str
) -> None:
    files = [("files", (name, data)) for name, data in images().items()]
    assert_same(ask(client, "/embed/images", accept, files=files), image_rows, NAMES)


@formats
def test_many_uploads_give_open_clips_raw_embeddings(
    client: httpx.Client, by_hand: Reference, decoded: list[Image.Image], accept: str
) -> None:
    files = [("files", (NAMES[i], _file(i))) for i in SOME_IMAGES]
    got = ask(client, "/embed/images", accept, files=files, data={"normalize": "false"})
    wanted = by_hand.images([decoded[i] for i in SOME_IMAGES], normalize=False)
    assert_same(got, wanted, [NAMES[i] for i in SOME_IMAGES])


@pytest.mark.parametrize("encoding", ["float", "base64", NPY])
def test_v1_embeddings_gives_open_clips_embeddings(
    client: httpx.Client, text_rows: Embeddings, image_rows: Embeddings, encoding: str
) -> None:
    wanted: list[Any] = []
    items: list[Any] = []
    for n, (text, image) in enumerate(zip(SOME_TEXTS, SOME_IMAGES, strict=False)):
        uri = f"data:image/any;base64,{_base64(_file(image))}"
        items += [TEXTS[text], {"image": uri} if n % 2 else uri]
        wanted += [text_rows[text], image_rows[image]]
    request = {"model": MODEL_NAME, "input": items}
    if encoding == NPY:
        got = ask(client, "/v1/embeddings", NPY, json=request)
    else:
        answer = client.post("/v1/embeddings", json=request | {"encoding_format": encoding})
        assert answer.status_code == 200, answer.text
        data = answer.json()["data"]
        assert [item["index"] for item in data] == list(range(len(items)))
        rows = [item["embedding"] for item in data]
        if encoding == "base64":
            rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
        got = np.array(rows, np.float32)
    names = [str(item)[:40] for item in items]
    assert_same(got, np.stack(wanted), names)


def test_rank_gives_the_probabilities_of_clip(
    client: httpx.Client, by_hand: Reference, text_rows: Embeddings, image_rows: Embeddings
) -> None:
    for image in SOME_IMAGES[:3]:
        request = {"image": {"image_base64": _base64(_file(image))}, "texts": TEXTS}
        answer = client.post("/rank", json=request)
        assert answer.status_code == 200, answer.text
        scores = torch.from_numpy(text_rows @ image_rows[image])
        probabilities = (by_hand.model.logit_scale.exp() * scores).softmax(0).tolist()
        ranking = answer.json()["ranking"]
        assert [item["score"] for item in ranking] == sorted(
            (item["score"] for item in ranking), reverse=True
        )
        stripped = [text.strip() for text in TEXTS]  # as in responses
        of_text = dict(zip(stripped, zip(scores.tolist(), probabilities, strict=True), strict=True))
        for item in ranking:
            score, probability = of_text.pop(item["text"])
            assert item["score"] == pytest.approx(score, abs=2e-5)
            assert item["probability"] == pytest.approx(probability, rel=1e-2, abs=1e-6)
        assert not of_text


def _small_picture(rng: np.random.Generator, number: int) -> bytes:
    cells = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    size = tuple(rng.integers(24, 64, 2).tolist())
    return file_bytes(cells.resize(size), ("PNG", "JPEG", "WEBP", "BMP")[number % 4])


def _distinct_captions(rng: np.random.Generator, count: int) -> list[str]:
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions[caption(sample_scene(rng), LANGUAGES[len(captions) % 2], rng)] = None
    return list(captions)


def _least_distance(rows: Embeddings) -> float:
    products = rows.astype(np.float64) @ rows.T.astype(np.float64)
    np.fill_diagonal(products, -1)
    return float(np.sqrt(2 - 2 * products.max()))


@pytest.mark.parametrize(
    "load",
    [SMALL_LOAD, pytest.param(LARGE_LOAD, marks=[pytest.mark.slow, only_bundled])],
    ids=["small", "large"],
)
def test_under_mixed_load_each_response_has_the_embedding_of_its_item(
    served: Server, exact: Encoder, load: tuple[int, int]
) -> None:
    text_queries, image_uploads = load
    rng = np.random.default_rng(7)
    texts = _distinct_captions(rng, text_queries)
    pictures = [_small_picture(rng, i) for i in range(image_uploads)]
    wanted_texts, wanted_images = exact.encode_texts(texts), exact.encode_images(pictures)
    # the embeddings differ by more than the tolerance
    assert min(_least_distance(wanted_texts), _least_distance(wanted_images)) > 0.01

    got_texts, got_images = np.full_like(wanted_texts, np.nan), np.full_like(wanted_images, np.nan)
    jobs = [("text", i) for i in range(len(texts))] + [("image", i) for i in range(len(pictures))]
    left = iter([jobs[i] for i in rng.permutation(len(jobs))])

    async def work(client: httpx.AsyncClient) -> None:
        for kind, i in left:
            if kind == "text":
                answer = await client.post("/embed/text", json={"text": texts[i]})
            else:
                answer = await client.post("/embed/image/upload", files={"file": pictures[i]})
            assert answer.status_code == 200, answer.text
            (got_texts if kind == "text" else got_images)[i] = answer.json()["embedding"]

    async def send() -> float:
        limits = httpx.Limits(max_connections=CONNECTIONS)
        async with httpx.AsyncClient(base_url=served.url, timeout=60, limits=limits) as client:
            started = time.monotonic()
            await asyncio.gather(*(work(client) for _ in range(CONNECTIONS)))
            return time.monotonic() - started

    seconds = asyncio.run(send())
    assert_same(got_texts, wanted_texts, texts, tolerance=1e-4)
    assert_same(got_images, wanted_images, [f"picture {i}" for i in range(len(pictures))], 1e-4)
    assert seconds < 60 or not IS_BUNDLED
