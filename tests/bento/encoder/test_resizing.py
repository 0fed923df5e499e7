"""The resizing for towers in 16 bits differs from that of the model only in rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import torch
from open_clip import image_transform
from PIL import Image
from torchvision.transforms import (  # type: ignore[import-untyped]
    CenterCrop,
    Compose,
    InterpolationMode,
    Pad,
    Resize,
)

from bento import Encoder, Settings
from bento.encoder.images import decode_image
from bento.encoder.resizing import QuickResize, quick_resize
from tests.support.corpus import images
from tests.support.paths import BUNDLED

pytestmark = pytest.mark.service

SIDE: Final = 64
SHAPES: Final = ((40, 30), (30, 40), (64, 64), (97, 80), (120, 131), (1000, 64), (800, 601))


def spatial(**options: Any) -> list[Any]:
    """Return the transforms of OpenCLIP that resize and crop a picture."""
    steps: list[Any] = image_transform(SIDE, is_train=False, **options).transforms[:-2]
    return steps


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def quick_of(steps: Sequence[Any]) -> QuickResize:
    quick = quick_resize(steps)
    assert quick is not None
    return quick


def differences(steps: Sequence[Any], image: Image.Image) -> npt.NDArray[np.int64]:
    """Return the absolute difference of each value (0 to 255) from that of the transforms."""
    quick = quick_of(steps)
    assert quick.suits(image)
    pixels = quick(image)
    assert (pixels.dtype, pixels.is_contiguous()) == (torch.uint8, True)
    exact = np.asarray(Compose(steps)(image)).astype(int)
    assert pixels.shape == exact.shape
    result: npt.NDArray[np.int64] = np.abs(pixels.numpy().astype(int) - exact)
    return result


@pytest.mark.parametrize(
    "options",
    [{}, {"interpolation": "bilinear"}, {"resize_mode": "squash"}],
    ids=["usual", "bilinear", "squash"],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_differ_by_at_most_1(shape: tuple[int, int], options: dict[str, Any]) -> None:
    found = differences(spatial(**options), noise(*shape))
    assert found.max() <= 1
    assert (found > 0).mean() < 0.06


def test_values_of_every_picture_of_the_corpus_differ_by_at_most_1() -> None:
    suited = 0
    for name, data in images().items():
        image = decode_image(data, max_bytes=1 << 30, max_pixels=1 << 30)
        if quick_of(spatial()).suits(image):
            suited += 1
            assert differences(spatial(), image).max() <= 1, name
    assert suited > 50


@pytest.mark.parametrize("shape", [(100, 500), (64, 129)], ids=str)
def test_pictures_whose_columns_pillow_resizes_first_are_left_to_pillow(
    shape: tuple[int, int],
) -> None:
    assert quick_of(spatial()).suits(noise(*shape)) is (shape == (64, 129))


@pytest.mark.parametrize(
    "steps",
    [
        spatial(resize_mode="longest"),
        [],
        [Resize(SIDE, max_size=100), *spatial()[1:]],
        [Resize(SIDE, interpolation=InterpolationMode.NEAREST), *spatial()[1:]],
        [*spatial()[:2], Pad(2), spatial()[-1]],
        [CenterCrop(SIDE), *spatial()],
    ],
    ids=["longest", "none", "max_size", "nearest", "pad", "crop first"],
)
def test_other_transforms_are_not_replaced(steps: list[Any]) -> None:
    assert quick_resize(steps) is None


def test_only_a_tower_in_16_bits_uses_it() -> None:
    picture = noise(300, 200)
    exact = np.asarray(Compose(spatial())(picture))
    prepared = {}
    for dtype in ("float32", "bfloat16"):
        encoder = Encoder.load(Settings(model_name=BUNDLED, device="cpu", dtype=dtype))
        prepared[dtype] = encoder.image.prepare(picture).numpy()
        # other modes and large pictures are left to Pillow
        grey = picture.convert("L")
        expected = np.asarray(Compose(spatial())(grey))
        assert np.array_equal(encoder.image.prepare(grey).numpy(), expected)
        large = picture.resize((2010, 2000))
        expected = np.asarray(Compose(spatial())(large))
        assert np.array_equal(encoder.image.prepare(large).numpy(), expected)
    assert np.array_equal(prepared["float32"], exact)
    assert not np.array_equal(prepared["bfloat16"], exact)
