"""Decode the bytes of a picture file into an upright RGB image."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bento.contract.errors import BrokenImage, EncoderError, InvalidRequest, NotAnImage, TooLarge

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Models resize the shorter side, so an image of 1 x 10,000 pixels would take gigabytes.
MAX_RATIO: Final = 200
# A scan of a few bytes may make the decoder go through all pixels. Usual files have 10 scans.
MAX_SCANS: Final = 50
# Against decompression bombs: a file with more than PIXELS_PER_BYTE may have at most SPARSE_PIXELS,
# even if MAX_IMAGE_PIXELS is higher. No photograph has so many pixels per byte. Decoding
# SPARSE_PIXELS takes 300 MB.
SPARSE_PIXELS: Final = 33_000_000
PIXELS_PER_BYTE: Final = 32
LARGE_PIXELS: Final = 16_000_000  # larger pictures are decoded one at a time, to bound memory
_STRIP: Final = 1 << 18  # how many pixels are converted at once
_TILE: Final = (322, 323)  # TIFF tags TileWidth and TileLength
_BITS: Final = 258  # TIFF tag BitsPerSample
_PHOTOMETRIC: Final = 262  # TIFF tag PhotometricInterpretation
_WHITE_IS_ZERO: Final = 0
# The markers that start a segment of a JPEG. 0xFF00 and 0xFFD0 to 0xFFD7 belong to a scan's data.
_MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_SCAN: Final = 0xDA
_END: Final = 0xD9

# Pillow would warn at a lower limit than the one that `open_image` checks before decoding.
Image.MAX_IMAGE_PIXELS = None


def decode_image(data: bytes, *, max_bytes: int, max_pixels: int) -> Image.Image:
    """Decode the first frame of a picture file into an RGB image.

    The EXIF orientation is applied. Transparent pixels become white. Greyscale with more than
    8 bits is scaled to 8 bits. Both limits are checked before decoding, which then takes at most
    9 bytes of memory per pixel of `max_pixels`.

    Raises `InvalidRequest` for an empty file, a side that is more than `MAX_RATIO` times the other,
    or greyscale of an unknown range. Raises `TooLarge`, `NotAnImage` or `BrokenImage`.
    """
    return load_image(open_image(data, max_bytes=max_bytes, max_pixels=max_pixels))


def open_image(data: bytes, *, max_bytes: int, max_pixels: int) -> Image.Image:
    """Return a picture file whose header is read, within the limits.

    This is the cheap half of `decode_image`, and raises the same errors.
    """
    if not data:
        raise InvalidRequest("the image has 0 bytes: send a picture file")
    if len(data) > max_bytes:
        raise TooLarge(
            f"the image has {len(data):,} bytes; at most {max_bytes:,} are allowed "
            "(MAX_IMAGE_BYTES)"
        )
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        allowed = min(max_pixels, max(SPARSE_PIXELS, PIXELS_PER_BYTE * len(data)))
        _check_shape(image, int(allowed / _cost(image, data)))
    except UnidentifiedImageError:
        raise NotAnImage(
            f"these bytes are not a picture in a supported format; allowed: {', '.join(FORMATS)}"
        ) from None
    except EncoderError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's readers raise errors of any type
        raise BrokenImage(
            f"the header of the image is broken: {_describe(error)}; save the image again"
        ) from None
    return image


def load_image(image: Image.Image) -> Image.Image:
    """Decode an opened picture file.

    This is the expensive half of `decode_image`, and raises the same errors.
    """
    try:
        image.load()
        with suppress(Exception):  # if the EXIF data is unreadable, leave the image as it is
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except EncoderError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise errors of any type
        raise BrokenImage(
            f"the {image.format} image is broken or truncated: {_describe(error)}; save it again"
        ) from None


def load_preview(image: Image.Image, side: int) -> Image.Image:
    """Decode an opened picture file into an image of at most `side` x `side` pixels.

    Of a JPEG, only as many pixels are decoded as a sharp preview needs. Raises the errors of
    `decode_image`.
    """
    scale = 2 * side / max(image.size)
    image.draft(None, (int(image.width * scale) or 1, int(image.height * scale) or 1))  # JPEG only
    preview = load_image(image)
    preview.thumbnail((side, side))
    return preview


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__


def _cost(image: Image.Image, data: bytes) -> float:
    """Return how much memory a pixel takes, including its upright RGB copy, in units of 8 bytes.

    Raises `TooLarge` for a JPEG with too many scans.
    """
    if image.format == "WEBP":
        return 2  # libwebp holds two canvases, and Pillow a copy and the image
    if image.format == "TIFF":
        return 1.5  # a strip may span the image, with up to 8 bytes per pixel
    if image.format in ("JPEG", "MPO"):
        scans = _scans(data)
        if len(scans) > MAX_SCANS:
            raise TooLarge(
                f"the JPEG has more than {MAX_SCANS} scans, which is the limit: save it as a "
                "baseline JPEG"
            )
        if "progressive" in image.info or scans[:1] != [len(image.getbands())]:
            return 1.5  # the decoder holds the coefficients of all pixels
    return 1


def _scans(jpeg: bytes) -> list[int]:
    """Return the number of components of each scan, for at most `MAX_SCANS` + 1 scans."""
    scans: list[int] = []
    at = 2
    while len(scans) <= MAX_SCANS and (marker := _MARKER.search(jpeg, at)):
        end = marker.end()
        if jpeg[end - 1] == _END:
            break
        if jpeg[end - 1] == _SCAN:
            scans += jpeg[end + 2 : end + 3]
        at = end + max(2, int.from_bytes(jpeg[end : end + 2]))
    return scans


def _check_shape(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise TooLarge(
            f"the {image.format} image has {width} x {height} = {width * height:,} pixels; at "
            f"most {max_pixels:,} are allowed for this format and file size (MAX_IMAGE_PIXELS)"
        )
    if max(image.size) > MAX_RATIO * min(image.size):
        raise InvalidRequest(
            f"the image has {width} x {height} pixels; one side may be at most {MAX_RATIO} times "
            "as long as the other"
        )
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TILE[0], 0) * tags.get(_TILE[1], 0)
    if tile > max_pixels:
        raise TooLarge(
            f"the tiles of the TIFF image have {tile:,} pixels; at most {max_pixels:,} are allowed "
            "(MAX_IMAGE_PIXELS)"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB over white, converted in strips to save memory."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rgb = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box)
        if strip.mode.startswith(("I", "F")):
            strip = _to_8_bit(strip, getattr(image, "tag_v2", {}))
        rgb.paste(_strip_to_rgb(strip), box)
    return rgb


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Scale greyscale to 8 bits: integers of up to 16 bits, or floats from 0 to 1.

    `tags` are the tags of a TIFF. Raises `InvalidRequest` for values outside that range, because
    the value of white is unknown then.
    """
    values = np.nan_to_num(np.asarray(image, np.float64))
    white = 1.0 if image.mode == "F" else 2.0 ** min(tags.get(_BITS, (16,))[0], 16) - 1
    beyond = 1.0 if image.mode == "F" else 0.0  # in photographs, floats may exceed 1; clip them
    if values.min() < -beyond or values.max() > white + beyond:
        raise InvalidRequest(
            f"the greyscale image of mode {image.mode} has values outside 0 to {white:,.0f}, so "
            "the value of white is unknown: save it with 8 or 16 bits, or with floats from 0 to 1"
        )
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    return Image.fromarray(np.uint8(np.clip(np.rint(values * (255 / white)), 0, 255)))
