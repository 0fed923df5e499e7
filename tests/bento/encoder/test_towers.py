"""The towers of every architecture give the same embeddings as OpenCLIP, one item at a time."""

from __future__ import annotations

import copy
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import (  # type: ignore[import-untyped]
    CenterCrop,
    Compose,
    ConvertImageDtype,
    Normalize,
    Resize,
    ToTensor,
)

from bento.contract.errors import ModelLoadError
from bento.encoder.embeddings import Embeddings, normalized
from bento.encoder.image_tower import ImageTower
from bento.encoder.text_tower import group_by_length
from tests.support.bento.architectures import (
    ARCHITECTURES,
    CLIP,
    CONTEXT,
    LONG,
    TOLERANCE,
    VIT,
    Model,
    Pair,
    architecture,
    assert_same,
)
from tests.support.corpus import TEXTS

pytestmark = [pytest.mark.service, pytest.mark.usefixtures("restored_threads")]


# ---- both towers, every architecture


def assert_unit(got: Embeddings, raw: Embeddings, names: list[str]) -> None:
    assert_same(got, normalized(raw), names)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=TOLERANCE)


def test_texts_are_embedded_as_open_clip_does(pair: Pair) -> None:
    raw = pair.model.texts(TEXTS, normalize=False)
    assert_same(pair.encoder.encode_texts(TEXTS, normalize=False), raw, TEXTS)
    assert_unit(pair.encoder.encode_texts(TEXTS), raw, TEXTS)


def test_images_are_embedded_as_open_clip_does(
    pair: Pair, pictures: dict[str, Image.Image]
) -> None:
    given, names = list(pictures.values()), list(pictures)
    raw = pair.model.images(given, normalize=False)
    assert_same(pair.encoder.encode_images(given, normalize=False), raw, names)
    assert_unit(pair.encoder.encode_images(given), raw, names)


def test_the_embeddings_of_these_models_differ(
    pair: Pair, pictures: dict[str, Image.Image]
) -> None:
    # otherwise the tests here would not notice rows in the wrong order
    names = ("photo", "gradient", "stripes", "white_noise", "2x3", "white")
    texts = pair.model.texts(["a", "a cat", "я", "a cat sits", "猫", LONG])
    for embeddings in (texts, pair.model.images([pictures[name] for name in names])):
        distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=-1)
        assert distances[~np.eye(6, dtype=bool)].min() > 1000 * TOLERANCE


def test_embeddings_keep_the_order_of_the_texts(pair: Pair) -> None:
    order = np.random.default_rng(1).permutation(len(TEXTS))
    straight = pair.encoder.encode_texts(TEXTS)
    shuffled = pair.encoder.encode_texts([TEXTS[i] for i in order])
    assert_same(shuffled, straight[order], [TEXTS[i] for i in order])


@pytest.mark.parametrize("place", [0, 13, 31])
def test_a_long_text_changes_none_of_31_short_ones(pair: Pair, place: int) -> None:
    texts = [f"{i} cats"[: 1 + i % 7] for i in range(31)]
    texts.insert(place, LONG)
    together = pair.encoder.encode_texts(texts)
    assert_same(together, np.concatenate([pair.encoder.encode_texts([t]) for t in texts]), texts)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_explicit_dtype_is_used_and_gives_float32_arrays(
    pair: Pair, pictures: dict[str, Image.Image], dtype: str
) -> None:
    encoder = pair.model.encoder(dtype=dtype)
    assert encoder.dtypes == {"text": dtype, "image": dtype}
    for tower in (encoder.text, encoder.image):
        assert {p.dtype for p in tower.module.parameters()} == {getattr(torch, dtype)}
    texts, given = TEXTS[:40], list(pictures.values())[:12]
    for got, wanted in (
        (encoder.encode_texts(texts), pair.model.texts(texts)),
        (encoder.encode_images(given), pair.model.images(given)),
    ):
        assert got.dtype == np.float32
        # `FIDELITY` applies to trained weights; these are random
        assert (got * wanted).sum(1).min() > 0.99


# ---- the text tower


def test_texts_end_at_the_end_of_text_token_if_the_tower_allows(pair: Pair) -> None:
    assert pair.encoder.text.cuts is pair.cuts
    short = pair.encoder.text.prepare("a cat")  # start, a, cat, end
    assert short.dtype == torch.int64
    assert len(short) == (4 if pair.cuts else CONTEXT)
    for text in TEXTS:
        tokens = pair.encoder.text.prepare(text)
        whole = pair.model.tokenizer([text])[0]
        assert torch.equal(tokens, whole[: len(tokens)])
        assert len(tokens) <= CONTEXT


def _counted(pair: Pair, text: str) -> int:
    tower = pair.encoder.text
    return tower.count_tokens(tower.prepare(text))


def test_a_long_text_is_truncated_at_the_context_length(pair: Pair) -> None:
    assert pair.encoder.context_length == CONTEXT
    assert len(pair.encoder.text.prepare(LONG)) == CONTEXT
    assert _counted(pair, LONG) == CONTEXT


def test_tokens_are_counted_without_padding(pair: Pair) -> None:
    counted = [_counted(pair, text) for text in ("a", "a cat", "a cat sits")]
    assert counted == [3, 4, 5]


def test_the_size_of_a_text_is_its_number_of_tokens(clip: Pair) -> None:
    text = clip.encoder.text
    assert [text.size(text.prepare(t)) for t in ("a", "a red cat", LONG)] == [3, 5, CONTEXT]


# ---- groups of similar length


def test_a_single_long_text_has_its_own_group_if_a_forward_pass_is_cheap() -> None:
    lengths = [5] * 31
    lengths.insert(9, 77)
    groups = group_by_length(lengths, forward_tokens=40)
    assert sorted(groups, key=len) == [[9], [i for i in range(32) if i != 9]]


def test_all_texts_are_one_group_if_a_forward_pass_is_expensive() -> None:
    (group,) = group_by_length([5, 77, 6, 5, 30], forward_tokens=100_000)
    assert sorted(group) == [0, 1, 2, 3, 4]


def test_texts_of_one_length_are_one_group() -> None:
    assert group_by_length([7] * 100, forward_tokens=1) == [list(range(100))]
    assert group_by_length([7], forward_tokens=1) == [[0]]


@pytest.mark.parametrize("forward_tokens", [0, 1, 40, 300, 100_000])
def test_every_text_is_in_exactly_one_group(forward_tokens: int) -> None:
    rng = np.random.default_rng(forward_tokens)
    for _ in range(50):
        lengths = rng.integers(2, 78, rng.integers(1, 40)).tolist()
        groups = group_by_length(lengths, forward_tokens)
        assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
        # the lengths of the groups do not overlap, so that texts are padded as little as possible
        spans = sorted((min(of), max(of)) for of in ([lengths[i] for i in g] for g in groups))
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


# ---- the image tower


def test_a_prepared_image_is_uint8_with_channels_last(
    pair: Pair, pictures: dict[str, Image.Image]
) -> None:
    size = pair.model.preprocess(pictures["photo"]).shape[1:]
    for name in ("photo", "1x1", "2x3", "2000x10", "10x2000", "4000x3000"):
        pixels = pair.encoder.image.prepare(pictures[name])
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (*size, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_an_image_of_another_mode_is_converted_as_open_clip_does(
    clip: Pair, pictures: dict[str, Image.Image], mode: str
) -> None:
    given = [pictures["photo"].convert(mode)]
    assert_same(clip.encoder.encode_images(given), clip.model.images(given), [mode])


@pytest.mark.parametrize(
    "options",
    [
        {"resize_mode": "longest"},
        {"resize_mode": "longest", "fill_color": 200},
        {"resize_mode": "squash"},
        {"resize_mode": "squash", "interpolation": "bilinear"},
        {"interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5, 0.25, 0.1)},
    ],
)
def test_every_preprocessing_of_open_clip_is_supported(
    pictures: dict[str, Image.Image], tmp_path: Path, options: dict[str, Any]
) -> None:
    model = Model(ARCHITECTURES["clip"], tmp_path)
    model.preprocess = open_clip.image_transform(32, is_train=False, **options)
    # the shorter side would be resized to 0 pixels, which Pillow rejects
    too_thin = {"2000x10", "10x2000"} if "longest" in options.values() else set()
    names = [name for name in pictures if name not in too_thin]
    given = [pictures[name] for name in names]
    assert_same(model.encoder().encode_images(given), model.images(given), names)


@pytest.mark.parametrize(
    "steps",
    [
        [Resize(32), CenterCrop(32), ToTensor()],
        [Resize(32), CenterCrop(32), ToTensor(), ConvertImageDtype(torch.float16)],
        [Resize(32), ToTensor(), Normalize(0.5, 0.5), CenterCrop(32)],
        [ToTensor(), Resize(32), CenterCrop(32), Normalize(0.5, 0.5)],
    ],
)
def test_a_preprocessing_that_cannot_be_split_is_rejected(clip: Pair, steps: list[Any]) -> None:
    with pytest.raises(ModelLoadError, match="does not end with ToTensor and Normalize"):
        ImageTower(clip.model.model.visual, Compose(steps), "cpu", 8)


def test_a_tower_has_a_lane_per_core_unless_it_is_compiled(
    clip: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(3)
    model = copy.deepcopy(clip.model.model)
    tower = ImageTower(model.visual, clip.model.preprocess, "cpu", 32)
    assert tower.lanes == 3
    monkeypatch.setenv("CXX", "c++")  # not used before the first batch
    tower.compile()
    assert tower.lanes == 1


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, the C++ compiler of torch.compile")
def test_a_compiled_tower_gives_the_same_embeddings_for_every_batch_size(
    pictures: dict[str, Image.Image], tmp_path: Path
) -> None:
    model = Model(architecture(CLIP, VIT | {"layers": 1}, {}, cuts=True), tmp_path)
    encoder = model.encoder(max_batch_size=4)
    names = ["photo", "gradient", "stripes", "white_noise", "2x3"]
    given = [pictures[name] for name in names]
    assert [len(batch) for batch in encoder.image.warm_batches()] == [1]
    encoder.image.compile()
    assert [len(batch) for batch in encoder.image.warm_batches()] == [4, 2, 1]
    for count in (1, 2, 3, 4):
        got = encoder.encode_images(given[:count], normalize=False)
        wanted = model.images(given[:count], normalize=False)
        assert_same(got, wanted, names, tolerance=1e-4)
    torch.compiler.reset()


def test_compile_is_rejected_without_a_compiler(
    clip: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ModelLoadError, match=r"COMPILE=true needs a C\+\+ compiler"):
        clip.model.encoder(compile=True)
