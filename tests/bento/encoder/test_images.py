"""The decoding of picture files into upright RGB images, and its limits."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from bento.contract.errors import BrokenImage, EncoderError, InvalidRequest, NotAnImage, TooLarge
from bento.encoder.images import decode_image, load_preview, open_image
from tests.support.pictures import file_bytes, scene_image

TIFF_TAGS: Final = {
    "width": 256,
    "bits": 258,
    "photometric": 262,
    "extra_samples": 338,
    "sample_format": 339,
}
pillow_warns = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def decode(data: bytes, max_bytes: int = 20_000_000, max_pixels: int = 1_000_000) -> Image.Image:
    return decode_image(data, max_bytes=max_bytes, max_pixels=max_pixels)


def difference(a: Image.Image, b: Image.Image) -> float:
    """Return the mean absolute difference of the values (0 to 255) of two pictures."""
    assert a.size == b.size
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0.0),
        ("BMP", {}, 0.0),
        ("TIFF", {}, 0.0),
        ("WEBP", {"lossless": True}, 0.0),
        ("JPEG", {"quality": 95}, 2.0),
        ("GIF", {}, 4.0),
    ],
)
def test_every_format_is_decoded(format: str, options: dict[str, object], tolerance: float) -> None:
    image = scene_image(1)
    decoded = decode(file_bytes(image, format, **options))
    assert decoded.mode == "RGB"
    assert difference(decoded, image) <= tolerance


def test_transparent_pixels_become_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    decoded = decode(file_bytes(image))
    assert decoded.getpixel((5, 5)) == (255, 255, 255)
    assert decoded.getpixel((0, 0)) == (255, 0, 0)
    assert decoded.getpixel((1, 0)) == (127, 127, 127)


def test_a_transparent_colour_of_a_palette_becomes_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((0, 0), 1)
    decoded = decode(file_bytes(image, transparency=0))
    assert decoded.getpixel((3, 3)) == (255, 255, 255)
    assert decoded.getpixel((0, 0)) == (200, 0, 0)


def test_16_bit_greyscale_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    decoded = decode(file_bytes(Image.fromarray(values)))
    assert [decoded.getpixel(xy) for xy in ((0, 0), (1, 0), (0, 1), (1, 1))] == [
        (0, 0, 0),
        (100, 100, 100),
        (200, 200, 200),
        (255, 255, 255),
    ]


def test_float_tiff_is_read_from_0_to_1() -> None:
    values = np.array([[0.0, 0.5], [1.0, 2.0]], np.float32)
    decoded = decode(file_bytes(Image.fromarray(values), "TIFF"))
    assert [decoded.getpixel(xy)[0] for xy in ((0, 0), (1, 0), (0, 1), (1, 1))] == [  # type: ignore[index]
        0,
        128,
        255,
        255,
    ]


def tiff(values: npt.NDArray[Any], **tags: int) -> bytes:
    """Return a TIFF whose tags are changed to these values."""
    data = file_bytes(Image.fromarray(values), "TIFF")
    for name, value in tags.items():
        at = max(data.find(struct.pack("<HHI", TIFF_TAGS[name], kind, 1)) for kind in (3, 4)) + 8
        data = data[:at] + struct.pack("<H", value) + data[at + 2 :]
    return data


def greys(data: bytes) -> list[int]:
    """Return the values of a grey picture with one row of pixels."""
    rows = np.asarray(decode(data))
    assert (rows == rows[..., :1]).all()
    return [int(grey) for grey in rows[0, :, 0]]


def test_greyscale_with_white_as_zero_is_inverted() -> None:
    integers = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert greys(tiff(integers, photometric=0)) == [255, 155, 0]
    floats = np.array([[0.0, 0.4, 1.0]], np.float32)
    assert greys(tiff(floats, photometric=0)) == [255, 153, 0]


def test_12_bit_greyscale_is_scaled_to_its_own_white() -> None:
    # 3 values of 16 bits, which are 4 values of 12 bits
    row = np.frombuffer(bytes.fromhex("000fff7ff000"), np.uint16)[None]
    assert greys(tiff(row, width=4, bits=12)) == [0, 255, 127, 0]


@pytest.mark.parametrize(
    ("values", "wording"),
    [
        (np.array([[0, 70_000]], np.int32), "mode I has values outside 0 to 65,535,"),
        (np.array([[-5, 300]], np.int32), "mode I has values outside 0 to 65,535,"),
        (np.array([[0.0, 255.0]], np.float32), "mode F has values outside 0 to 1,"),
        (np.array([[0.0, np.inf]], np.float32), "mode F has values outside 0 to 1,"),
    ],
)
def test_greyscale_with_an_unknown_value_of_white_is_rejected(
    values: npt.NDArray[Any], wording: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"{wording}.* save it with 8 or 16 bits"):
        decode(tiff(values))


def test_unsigned_32_bit_greyscale_is_rejected_if_it_exceeds_16_bits() -> None:
    values = np.array([[0, -1]], np.int32)  # -1 is the largest unsigned value
    with pytest.raises(InvalidRequest):
        decode(tiff(values, sample_format=1))


def test_32_bit_greyscale_within_16_bits_is_scaled_as_16_bits() -> None:
    values = np.array([[0, 257 * 100, 65535]], np.int32)
    assert greys(tiff(values)) == greys(tiff(values, sample_format=1)) == [0, 100, 255]


def test_transparent_pixels_of_premultiplied_greyscale_become_white() -> None:
    values = np.array([[[0, 0], [50, 128], [200, 255]]], np.uint8)
    assert greys(tiff(values, extra_samples=1)) == [255, 177, 200]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.new("L", (6, 6), 255).convert(mode)
    assert decode(file_bytes(image)).getpixel((3, 3)) == (255, 255, 255)


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("RGB", (16, 16), (250, 5, 5)).convert("CMYK")
    r, g, b = decode(file_bytes(red, "JPEG", quality=95)).getpixel((8, 8))  # type: ignore[misc]
    assert r > 230
    assert g < 30
    assert b < 30


def test_exif_orientation_is_applied() -> None:
    image = scene_image(2).resize((60, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees to see the picture upright
    decoded = decode(file_bytes(image, exif=exif.tobytes()))
    assert difference(decoded, image.transpose(Image.Transpose.ROTATE_270)) == 0


@pillow_warns
def test_a_picture_with_unreadable_exif_is_decoded_without_its_orientation() -> None:
    image = scene_image(2)
    decoded = decode(file_bytes(image, exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage"))
    assert difference(decoded, image) == 0


@pytest.mark.parametrize(
    ("format", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB")]
)
def test_a_preview_looks_like_the_picture(format: str, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    scene = scene_image(3, side=1600).crop((0, 0, 1600, 1200)).convert(mode)
    data = file_bytes(scene, format, exif=exif)
    opened = open_image(data, max_bytes=len(data), max_pixels=2_000_000)
    preview = load_preview(opened, 384)
    assert (preview.size, preview.mode) == ((288, 384), "RGB")
    if mode != "RGB":  # otherwise the preview is the same object
        assert opened.size == (600, 800)  # the decoder has computed a quarter of the pixels
    whole = decode(data, max_pixels=2_000_000).resize(preview.size)
    assert difference(preview, whole) < 2


def test_a_preview_is_not_larger_than_the_picture_and_never_of_a_broken_one() -> None:
    data = file_bytes(scene_image(3, side=100), "JPEG", quality=95)
    whole = open_image(data, max_bytes=len(data), max_pixels=100_000)
    assert load_preview(whole, 384).size == (100, 100)
    part = open_image(data[: len(data) * 9 // 10], max_bytes=len(data), max_pixels=100_000)
    with pytest.raises(BrokenImage):
        load_preview(part, 384)


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    first, second = scene_image(3), scene_image(4)
    data = file_bytes(first, "WEBP", lossless=True, save_all=True, append_images=[second])
    assert difference(decode(data), first) == 0


def test_an_empty_file_is_rejected() -> None:
    with pytest.raises(InvalidRequest, match="has 0 bytes"):
        decode(b"")


@pytest.mark.parametrize("data", [b"hello", b"%PDF-1.7 ...", b"\0" * 100, b"<svg/>"])
def test_other_files_are_not_images(data: bytes) -> None:
    with pytest.raises(NotAnImage, match="allowed: JPEG, PNG, WEBP"):
        decode(data)


@pillow_warns
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_file_is_read_or_rejected(format: str) -> None:
    data = file_bytes(scene_image(5, side=24), format)
    refused = 0
    for length in range(1, len(data)):
        try:
            decode(data[:length])
        except (BrokenImage, NotAnImage):
            refused += 1
    assert refused > len(data) * 0.8


def test_too_many_bytes_are_rejected_before_decoding() -> None:
    with pytest.raises(TooLarge, match=r"at most 10 are allowed"):
        decode(b"not even a picture", max_bytes=10)


def test_too_many_pixels_are_rejected_before_decoding() -> None:
    # the header claims 60,000 x 60,000 pixels, which the file does not have
    header = file_bytes(Image.new("1", (8, 8)), "PNG")
    ihdr = header.index(b"IHDR") + 4
    size = (60_000).to_bytes(4, "big") * 2
    chunk = b"IHDR" + size + header[ihdr + 8 : ihdr + 13]
    data = header[: ihdr - 4] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + header[ihdr + 17 :]
    with pytest.raises(TooLarge, match=r"3,600,000,000 pixels"):
        decode(data)


def test_files_that_take_more_memory_to_decode_may_have_fewer_pixels() -> None:
    image = scene_image(6, side=90)  # 8,100 pixels; the limit is 9,000
    baseline = file_bytes(image, "JPEG")
    scan = baseline.index(b"\xff\xda")
    one_component = baseline[: scan + 4] + b"\1" + baseline[scan + 5 :]
    for data in (baseline, file_bytes(image), file_bytes(image, "GIF"), file_bytes(image, "BMP")):
        assert open_image(data, max_bytes=100_000, max_pixels=9_000).size == (90, 90)
    for data, allowed in (
        (file_bytes(image, "JPEG", progressive=True), "6,000"),
        (one_component, "6,000"),
        (file_bytes(image, "TIFF"), "6,000"),
        (file_bytes(image, "WEBP"), "4,500"),
    ):
        with pytest.raises(TooLarge, match=f"at most {allowed} are allowed for this format"):
            open_image(data, max_bytes=100_000, max_pixels=9_000)


def test_a_small_file_may_have_fewer_pixels_than_a_photograph() -> None:
    limits = {"max_bytes": 20_000_000, "max_pixels": 100_000_000}
    flat = file_bytes(Image.new("L", (8000, 6000)), "JPEG")  # 48 million pixels
    assert len(flat) < 1_000_000
    with pytest.raises(TooLarge, match="at most 33,000,000 are allowed"):
        open_image(flat, **limits)
    photograph = flat + bytes(1_500_000 - len(flat))
    assert open_image(photograph, **limits).size == (8000, 6000)
    with pytest.raises(TooLarge, match="at most 40,000,000 are allowed"):  # `max_pixels` holds too
        open_image(photograph, max_bytes=20_000_000, max_pixels=40_000_000)


def test_every_error_has_a_4xx_status() -> None:
    for error in (InvalidRequest, BrokenImage, NotAnImage, TooLarge):
        assert issubclass(error, EncoderError)
        assert 400 <= error.status < 500
