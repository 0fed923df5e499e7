"""The towers of every architecture give what OpenCLIP's own model gives, one item at a time."""

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
from torchvision.transforms import (
    CenterCrop,
    Compose,
    ConvertImageDtype,
    Normalize,
    Resize,
    ToTensor,
)

from bento.contract.errors import ModelLoadError
from bento.encoder.image_tower import ImageTower
from bento.encoder.text_tower import TextTower, _groups
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

pytestmark = pytest.mark.usefixtures("restored_threads")


# ---- both towers, every architecture


@pytest.mark.parametrize("normalize", [True, False])
def test_texts_are_embedded_as_open_clip_does(pair: Pair, normalize: bool) -> None:
    got = pair.encoder.encode_texts(TEXTS, normalize=normalize)
    assert_same(got, pair.model.texts(TEXTS, normalize=normalize), TEXTS)


@pytest.mark.parametrize("normalize", [True, False])
def test_images_are_embedded_as_open_clip_does(
    pair: Pair, pictures: dict[str, Image.Image], normalize: bool
) -> None:
    given = list(pictures.values())
    got = pair.encoder.encode_images(given, normalize=normalize)
    assert_same(got, pair.model.images(given, normalize=normalize), list(pictures))


def test_these_models_tell_their_texts_and_images_apart(
    pair: Pair, pictures: dict[str, Image.Image]
) -> None:
    # or else the tests here could not see rows that are mixed up
    names = ("photo", "gradient", "stripes", "white_noise", "2x3", "white")
    texts = pair.model.texts(["a", "a cat", "я", "a cat sits", "猫", LONG])
    for embeddings in (texts, pair.model.images([pictures[name] for name in names])):
        distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=-1)
        assert distances[~np.eye(6, dtype=bool)].min() > 1000 * TOLERANCE


def test_rows_come_back_in_the_order_given(pair: Pair) -> None:
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
def test_an_explicit_dtype_is_obeyed_and_gives_float32_arrays(
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
        assert (got * wanted).sum(1).min() > 0.99  # weights at random, nothing is promised of them


# ---- the text tower


def test_texts_are_cut_where_nothing_behind_their_end_counts(pair: Pair) -> None:
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


def test_a_text_beyond_the_context_has_as_many_tokens_as_the_context(pair: Pair) -> None:
    assert pair.encoder.context_length == CONTEXT
    assert len(pair.encoder.text.prepare(LONG)) == CONTEXT
    assert _counted(pair, LONG) == CONTEXT


def test_tokens_are_counted_without_padding(pair: Pair) -> None:
    counted = [_counted(pair, text) for text in ("a", "a cat", "a cat sits")]
    assert counted == [3, 4, 5]


def test_a_cut_text_costs_its_tokens(clip: Pair) -> None:
    text = clip.encoder.text
    assert [text.size(text.prepare(t)) for t in ("a", "a red cat", LONG)] == [3, 5, CONTEXT]


# ---- groups of similar length


def test_a_lone_long_text_is_grouped_apart_where_a_forward_is_cheap() -> None:
    lengths = [5] * 31
    lengths.insert(9, 77)
    groups = _groups(lengths, forward_tokens=40)
    assert sorted(groups, key=len) == [[9], [i for i in range(32) if i != 9]]


def test_all_texts_are_one_group_where_a_forward_is_dear() -> None:
    (group,) = _groups([5, 77, 6, 5, 30], forward_tokens=100_000)
    assert sorted(group) == [0, 1, 2, 3, 4]


def test_texts_of_one_length_are_one_group() -> None:
    assert _groups([7] * 100, forward_tokens=1) == [list(range(100))]
    assert _groups([7], forward_tokens=1) == [[0]]


@pytest.mark.parametrize("forward_tokens", [0, 1, 40, 300, 100_000])
def test_every_text_is_in_exactly_one_group(forward_tokens: int) -> None:
    rng = np.random.default_rng(forward_tokens)
    for _ in range(50):
        lengths = rng.integers(2, 78, rng.integers(1, 40)).tolist()
        groups = _groups(lengths, forward_tokens)
        assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
        # no group reaches into another, so that each is padded as little as can be
        spans = sorted((min(of), max(of)) for of in ([lengths[i] for i in g] for g in groups))
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


# ---- the image tower


def test_a_prepared_image_is_8_bit_rows_of_pixels(
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
def test_every_preprocessing_of_open_clip_is_followed(
    pictures: dict[str, Image.Image], tmp_path: Path, options: dict[str, Any]
) -> None:
    model = Model(ARCHITECTURES["clip"], tmp_path)
    model.preprocess = open_clip.image_transform(32, is_train=False, **options)
    # of an extreme shape the shorter side would be resized to nothing: Pillow refuses
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
def test_a_preprocessing_that_cannot_be_split_is_refused(clip: Pair, steps: list[Any]) -> None:
    with pytest.raises(ModelLoadError, match="does not end in ToTensor, Normalize"):
        ImageTower(clip.model.model.visual, Compose(steps), "cpu", 8)


def test_each_core_of_a_cpu_computes_a_batch_unless_it_is_compiled(clip: Pair) -> None:
    torch.set_num_threads(3)
    model = copy.deepcopy(clip.model.model)
    text = TextTower(model, clip.model.tokenizer, "cpu", 32)
    tower = ImageTower(model.visual, clip.model.preprocess, "cpu", 32)
    assert tower.lanes == text.lanes == 3
    tower._compiled = tower.module
    assert tower.lanes == 1


@pytest.mark.skipif(
    not shutil.which("g++"), reason="torch.compile needs a C++ compiler: there is no g++ here"
)
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


def test_compiling_without_a_compiler_is_refused_before_anything_is_served(
    clip: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ModelLoadError, match=r"COMPILE=true needs a C\+\+ compiler"):
        clip.model.encoder(compile=True)
