"""The inputs: texts in two languages and generated images, the same in every run."""

from __future__ import annotations

import io
from functools import cache
from typing import Any, Final

import numpy as np
from PIL import Image, ImageChops, ImageDraw

INDEXED: Final = 500
"""How many images are indexed for the searches."""

_THINGS: Final = {"circle": ("коло", 2), "square": ("квадрат", 0), "star": ("зірка", 1)}
_COLOURS: Final = {  # with the Ukrainian forms for three genders
    "red": ("червоний", "червона", "червоне"),
    "blue": ("синій", "синя", "синє"),
    "green": ("зелений", "зелена", "зелене"),
    "yellow": ("жовтий", "жовта", "жовте"),
    "black": ("чорний", "чорна", "чорне"),
    "white": ("білий", "біла", "біле"),
}
_ENDINGS: Final = {
    "": "",
    " on a pink background": " на рожевому тлі",
    ", left of a large orange ring, on grey": ", ліворуч великого помаранчевого кільця, на сірому",
}
ENGLISH: Final = tuple(
    f"a {colour} {thing}{ending}" for ending in _ENDINGS for colour in _COLOURS for thing in _THINGS
)
UKRAINIAN: Final = tuple(
    f"{forms[gender]} {noun}{ending}"
    for ending in _ENDINGS.values()
    for forms in _COLOURS.values()
    for noun, gender in _THINGS.values()
)
TEXTS: Final = ENGLISH[::2] + UKRAINIAN[1::2]
"""54 different queries of 2 to 11 words, half of them Ukrainian."""

# Sizes in pixels and how many images have each: thumbnails, images of web pages, photographs.
_SIZES: Final = {
    (320, 240): 4,
    (640, 480): 8,
    (1024, 768): 6,
    (1600, 1200): 4,
    (2048, 1536): 1,
    (4000, 3000): 1,
}


@cache
def pictures() -> dict[str, bytes]:
    """Return 24 JPEGs of 320 x 240 to 4000 x 3000 pixels, by name."""
    sizes = [size for size, count in _SIZES.items() for _ in range(count)]
    return {f"picture {n}": _jpeg(n, *size) for n, size in enumerate(sizes)}


def indexed_picture(n: int) -> bytes:
    """Return the JPEG with the id `n` in the index."""
    return _jpeg(1000 + n, 240, 180)


def _jpeg(seed: int, width: int, height: int) -> bytes:
    """Draw an image that compresses like a photograph: a gradient, some shapes, and grain."""
    rng = np.random.default_rng(seed)
    light = rng.integers(40, 216, (3, 4, 3)).astype(np.uint8)
    image = Image.fromarray(light).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 4))):
        _draw_thing(draw, rng, width, height)
    tile = rng.normal(128, 8, (256, 256)).clip(0, 255).astype(np.uint8)
    tiles = np.tile(tile, (height // 256 + 1, width // 256 + 1))[:height, :width]
    grain = Image.merge("RGB", [Image.fromarray(tiles)] * 3)
    buffer = io.BytesIO()
    ImageChops.add(image, grain, offset=-128).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _draw_thing(draw: Any, rng: np.random.Generator, width: int, height: int) -> None:
    x, y = rng.uniform(0.2, 0.8, 2) * (width, height)
    radius = rng.uniform(0.08, 0.25) * height
    colour = tuple(int(part) for part in rng.integers(0, 256, 3))
    sides = int(rng.integers(3, 7))
    if sides == 6:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    else:
        turn = float(rng.uniform(0, 90))
        draw.regular_polygon((x, y, radius), sides, rotation=turn, fill=colour)
