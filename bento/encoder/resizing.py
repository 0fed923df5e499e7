"""Resize and crop images with torch, for towers that compute in 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from open_clip.transform import MaybeConvertMode
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import (  # type: ignore[import-untyped]
    CenterCrop,
    InterpolationMode,
    Resize,
)

# With more pixels this is not faster, because torch first copies them into another memory layout.
_MAX_PIXELS: Final = 4_000_000
_MODES: Final = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)


class QuickResize:
    """Replaces torchvision's `Resize` and `CenterCrop` for RGB images.

    torchvision resizes with Pillow; this is three to four times as fast. It computes with weights
    of 16 bits, so up to 5 % of the values (0 to 255) differ from Pillow's by 1. That is less than
    the rounding of a tower in 16 bits, but embeddings in float32 would exceed their tolerance of
    1e-5.
    """

    def __init__(self, resize: Resize, crop: CenterCrop | None) -> None:
        self._size = resize.size
        self._mode = resize.interpolation.value
        self._crop = crop

    def suits(self, image: Image.Image) -> bool:
        """Say whether this is faster for an image, and the pixels are the same up to rounding."""
        height, width = self._resized(image.height, image.width)
        # torch always resizes the rows first; Pillow does not. The order matters, because values
        # are clipped to 0..255 in between.
        rows_first = image.height - height <= max(0, 2 * (image.width - width))
        return rows_first and image.mode == "RGB" and image.width * image.height <= _MAX_PIXELS

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the resized and cropped image, uint8 (height, width, 3)."""
        height, width = image.height, image.width
        pixels = torch.from_numpy(np.array(image)).view(1, height, width, 3)
        pixels = pixels.permute(0, 3, 1, 2)  # channels last in memory, as `interpolate` keeps them
        size = self._resized(height, width)
        resized = interpolate(pixels, size, mode=self._mode, antialias=True)
        if self._crop is not None:
            resized = self._crop(resized)
        return resized[0].permute(1, 2, 0).contiguous()

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self._size, int):
            return tuple(self._size)
        shorter = min(height, width)
        return int(self._size * height / shorter), int(self._size * width / shorter)


def quick_resize(transforms: Sequence[Any]) -> QuickResize | None:
    """Return a replacement for a model's transforms, or `None` if they are of another kind."""
    match transforms:
        case [Resize(max_size=None) as resize, *crop, MaybeConvertMode()] if (
            resize.interpolation in _MODES and [type(each) for each in crop] in ([], [CenterCrop])
        ):
            return QuickResize(resize, crop[0] if crop else None)
    return None
