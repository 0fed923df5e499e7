"""Texts and pictures of every kind, the same ones every time."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

_SCRIPTS: Final = [
    "a red bicycle leaning on a wall in the snow",
    "Ein großer Hund läuft über die Straße",
    "le café où l'été s'est arrêté, déjà vu",
    "İstanbul'da yağmurlu bir gün",
    "рудий кіт спить на підвіконні",
    "маленька синя зірка ліворуч від жовтого кола, п'ять жовтих кіл і ґудзик",
    "قطة صغيرة تجلس على النافذة",
    "خَرُوفٌ أَبْيَضُ فِي ٱلْحَقْلِ",
    "חתול כתום ישן על אדן החלון",
    "一只橘色的猫在窗台上睡觉",
    "オレンジ色の猫が窓辺で眠っています",
    "ｆｕｌｌ　ｗｉｄｔｈ ｶﾀｶﾅ",
    "खिड़की पर सोती हुई नारंगी बिल्ली",
    "แมวสีส้มนอนหลับอยู่บนขอบหน้าต่าง",
    "주황색 고양이가 창가에서 자고 있다",
    "mixed: кіт, 猫, חתול, قطة, बिल्ली, แมว",
]
_ODD: Final = [
    "👩‍👩‍👧‍👦 and 👨🏽‍🚀 under a 🏳️‍🌈",  # zero-width joiners
    "🇺🇦🇯🇵 ❤️ ✈︎ 1️⃣",
    "🐱" * 40,
    "e\u0301 i\u0308 n\u0303 o\u0302\u0323",  # combining marks
    "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033da\u035al\u0321g\u0331o",
    "caf\u00e9 cafe\u0301",  # composed and decomposed
    "zero\u200bwidth\u200cand\u200djoiners\ufeff",
    "\u202eright to left\u202c override",
    "tom &amp; jerry &lt;3 &quot;cheese&quot; &#9731; &amp;amp;",
    "<b>bold</b> <script>alert('x')</script>",
    "schÃ¶n mojibake that ftfy mends",
    "one\ntwo\r\nthree\n\n\nfour",
    "tabs\tand\t\ttabs   and   spaces\u00a0\u2003\u3000",
    "  leading and trailing  ",
    "!!!!!!!!!!!!!!!!!!!!",
    "what?!?!?!?!?! ... --- ((( )))",
    "!",
    ".",
    "'",
    "don't we'll they've I'm he'd 's",
    "0123456789",
    "1" * 60,
    "3.14159 -273.15 1,000,000 1e-5 №7 ½ ² Ⅷ ٣ ३",
    "<start_of_text> inside",
    "an <end_of_text> in the middle of it",  # models pool at the first end-of-text token
    "snake_case and camelCase and SHOUTING and ﬁ ligatures",
    "http://example.org/a?b=c&d=e#f",
    "{'json': [1, 2, null]}",
    "\\backslash\\ `ticks` $dollar$ ~tilde~ ^caret^",
    "\x07 bell and \x7f delete",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "q" * 200,
    "lorem ipsum dolor sit amet, consectetur adipiscing elit. " * 30,
    "дуже довгий опис картини, на якій багато різних фігур. " * 20,
    "猫" * 150,
]
# one token each in CLIP's vocabulary
_WORDS: Final = ("a", "cat", "red", "dog", "sits", "on", "the", "mat", "under", "blue", "sky")
_CONTEXTS: Final = (64, 77, 128)  # common context lengths


def _words(count: int) -> str:
    return " ".join(_WORDS[i % len(_WORDS)] for i in range(count))


TEXTS: Final[list[str]] = list(
    dict.fromkeys(
        [
            *("a", "я", "ab", "cat", "猫", "7"),
            *map(_words, range(1, 36)),
            # lengths around the context lengths; the start and the end are tokens, too
            *(_words(context + more) for context in _CONTEXTS for more in range(-4, 2)),
            *map(_words, (200, 500, 1500)),
            *_SCRIPTS,
            *_ODD,
        ]
    )
)


@cache
def images() -> dict[str, bytes]:
    """Return picture files by names that describe them."""
    rng = np.random.default_rng(2026)
    photo, other = _photo(rng, 240, 180), _photo(rng, 90, 120)
    grey = photo.convert("L")
    rgba = photo.convert("RGBA")
    rgba.putalpha(_gradient(240, 180).convert("L"))
    holes = other.convert("RGBA")
    holes.putalpha(Image.fromarray(rng.integers(0, 2, (120, 90), np.uint8) * 255))
    palette = photo.quantize(64)
    few = photo.quantize(4)
    deep = np.asarray(_gradient(100, 80).convert("L")).astype(np.uint16) * 257
    deep += rng.integers(0, 200, deep.shape).astype(np.uint16)

    files: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        # contents
        "photo": (photo, "JPEG", {"quality": 92}),
        "photo_progressive": (photo, "JPEG", {"quality": 40, "progressive": True}),
        "photo_444": (photo, "JPEG", {"quality": 100, "subsampling": 0}),
        "white_noise": (_noise(rng, 97, 131), "PNG", {}),
        "gradient": (_gradient(256, 256), "PNG", {}),
        "gradient_wide": (_gradient(640, 200), "PNG", {}),
        "stripes": (_stripes(200, 150), "PNG", {}),  # sensitive to resampling
        "black": (Image.new("RGB", (64, 64)), "PNG", {}),
        "white": (Image.new("RGB", (50, 70), "white"), "PNG", {}),
        # sizes
        "1x1": (Image.new("RGB", (1, 1), (200, 30, 90)), "PNG", {}),
        "2x3": (_noise(rng, 2, 3), "PNG", {}),
        "7x5": (_noise(rng, 7, 5), "BMP", {}),
        "31x33": (_noise(rng, 31, 33), "PNG", {}),
        "32x32": (_noise(rng, 32, 32), "PNG", {}),
        "64x64": (_noise(rng, 64, 64), "PNG", {}),
        "65x63": (_noise(rng, 65, 63), "PNG", {}),
        "4000x3000": (_photo(rng, 800, 600).resize((4000, 3000)), "JPEG", {"quality": 75}),
        "5000x4000": (
            _stripes(500, 400).convert("1").resize((5000, 4000)),
            "PNG",
            {},
        ),  # more than LARGE_PIXELS
        "2000x10": (_photo(rng, 2000, 10), "PNG", {}),
        "10x2000": (_photo(rng, 10, 2000), "PNG", {}),
        # modes
        "png_1": (grey.convert("1"), "PNG", {}),
        "png_L": (grey, "PNG", {}),
        "png_LA": (rgba.convert("LA"), "PNG", {}),
        "png_P": (palette, "PNG", {}),
        "png_P_one_transparent_colour": (few, "PNG", {"transparency": 1}),
        "png_P_alpha_of_each_colour": (few, "PNG", {"transparency": bytes([0, 90, 180, 255])}),
        "png_RGB": (photo, "PNG", {}),
        "png_RGB_transparent_colour": (_gradient(64, 48), "PNG", {"transparency": (0, 0, 127)}),
        "png_RGBA": (rgba, "PNG", {}),
        "png_RGBA_holes": (holes, "PNG", {}),
        "png_I;16": (Image.fromarray(deep), "PNG", {}),
        "jpeg_L": (grey, "JPEG", {"quality": 85}),
        "jpeg_CMYK": (photo.convert("CMYK"), "JPEG", {"quality": 85}),
        "jpeg_YCbCr": (photo.convert("YCbCr"), "JPEG", {"quality": 85}),
        "tiff_1": (grey.convert("1"), "TIFF", {}),
        "tiff_L": (grey, "TIFF", {}),
        "tiff_P": (palette, "TIFF", {}),
        "tiff_RGB": (photo, "TIFF", {}),
        "tiff_RGBA": (rgba, "TIFF", {}),
        "tiff_CMYK": (photo.convert("CMYK"), "TIFF", {}),
        "tiff_YCbCr": (photo.convert("YCbCr"), "TIFF", {}),
        "tiff_I": (Image.fromarray(deep.astype(np.int32)), "TIFF", {}),
        "tiff_F": (Image.fromarray((deep / 65_535).astype(np.float32)), "TIFF", {}),
        "tiff_I;16": (Image.fromarray(deep), "TIFF", {}),
        "tiff_I;16B": (Image.fromarray(deep.astype(">u2")), "TIFF", {}),
        # the other formats
        "webp": (photo, "WEBP", {"quality": 80}),
        "webp_lossless": (photo, "WEBP", {"lossless": True}),
        "webp_RGBA": (rgba, "WEBP", {"quality": 80}),
        "webp_animated": (other, "WEBP", {"save_all": True, "append_images": [holes]}),
        "gif": (palette, "GIF", {}),
        "gif_L": (grey, "GIF", {}),
        "gif_transparent": (few, "GIF", {"transparency": 2}),
        "gif_animated": (palette, "GIF", {"save_all": True, "append_images": [few]}),
        "bmp": (photo, "BMP", {}),
        "bmp_1": (grey.convert("1"), "BMP", {}),
        "bmp_P": (palette, "BMP", {}),
        "mpo": (photo, "MPO", {"save_all": True, "append_images": [other]}),  # from phones
    }
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"exif_{orientation}"] = (other, "JPEG", {"quality": 90, "exif": exif.tobytes()})
    return {name: _file(*file) for name, file in files.items()}


def _file(image: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _noise(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def _photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return noise that resembles photographs: strong large shapes and weak fine grain."""
    values = rng.normal(0, 8, (height, width, 3))
    for cells, strength in ((3, 70), (12, 40), (48, 20)):
        small = rng.normal(0, strength, (cells, cells, 3)).clip(-127, 127) + 127
        forms = Image.fromarray(small.astype(np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        values += np.asarray(forms, np.float64) - 127
    return Image.fromarray((values + 127).clip(0, 255).astype(np.uint8))


def _pixels(width: int, height: int, value: Callable[..., npt.NDArray[Any]]) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    channels = value(x, y, width, height)
    return Image.fromarray(np.broadcast_to(channels, (height, width, 3)).astype(np.uint8))


def _gradient(width: int, height: int) -> Image.Image:
    return _pixels(
        width,
        height,
        lambda x, y, w, h: np.stack(
            [255 * x // max(1, w - 1), 255 * y // max(1, h - 1), 0 * x + 127], -1
        ),
    )


def _stripes(width: int, height: int) -> Image.Image:
    return _pixels(width, height, lambda x, y, w, h: ((x // 3 + y // 2) % 2 * 255)[..., None])
