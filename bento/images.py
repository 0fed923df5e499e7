"""From the bytes of a picture file to an upright RGB image."""

from __future__ import annotations

import io
import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from bento.errors import BrokenImage, InvalidInput, NotAnImage, TooLarge

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# What Pillow's readers raise on broken files, besides errors of our own.
_BROKEN: Final = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError)
_BROKEN_EXIF: Final = (*_BROKEN, ZeroDivisionError, struct.error)

# decode_image checks its own limit before it decodes; Pillow's would warn below it.
Image.MAX_IMAGE_PIXELS = None


def decode_image(data: bytes, *, max_bytes: int, max_pixels: int) -> Image.Image:
    """Decode a picture file into an RGB image, upright, its first frame, over white.

    EXIF orientation is applied, transparency is laid over white, 16-bit greyscale is
    scaled to 8 bits. Both limits are checked before anything is decoded.

    Raises `InvalidInput` (empty), `TooLarge`, `NotAnImage` or `BrokenImage`.
    """
    return load_image(open_image(data, max_bytes=max_bytes, max_pixels=max_pixels))


def open_image(data: bytes, *, max_bytes: int, max_pixels: int) -> Image.Image:
    """Read the header of a picture file: the first half of `decode_image`, and the cheap one."""
    if not data:
        raise InvalidInput("the image is empty: send the bytes of a picture file")
    if len(data) > max_bytes:
        raise TooLarge(f"the image has {len(data):,} bytes; at most {max_bytes:,} are allowed")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise NotAnImage(
            f"these bytes are not a picture in a supported format ({', '.join(FORMATS)})"
        ) from None
    except (*_BROKEN, struct.error) as error:
        raise BrokenImage(f"the image cannot be read: {error}") from None
    width, height = image.size
    if width * height > max_pixels:
        raise TooLarge(
            f"the image has {width} x {height} = {width * height:,} pixels; "
            f"at most {max_pixels:,} are allowed"
        )
    return image


def load_image(image: Image.Image) -> Image.Image:
    """Decode an opened picture file: the second half of `decode_image`."""
    try:
        image.load()
    except (*_BROKEN, struct.error) as error:
        raise BrokenImage(f"the {image.format} image is broken or truncated: {error}") from None
    return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN_EXIF:
        return image  # unreadable EXIF says nothing about orientation


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale greyscale deeper than 8 bits: 16-bit integers, or floats from 0 to 1."""
    if np.issubdtype(values.dtype, np.floating):
        scaled = np.nan_to_num(values) * 255
    else:
        scaled = values.astype(np.float64) / 257  # 65,535 / 255
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)
