"""Scenes of coloured shapes: their description, sampling and drawing."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

SHAPES: Final = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (220, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 50),
    "green": (35, 150, 60),
    "blue": (35, 75, 215),
    "purple": (125, 45, 165),
    "pink": (250, 160, 195),
    "black": (20, 20, 20),
    "white": (248, 248, 248),
    "gray": (130, 130, 130),
}
SIZES: Final = ("small", "large")
KINDS: Final = ("single", "count", "pair", "triple")
RELATIONS: Final = {"pair": ("left", "above", "inside"), "triple": ("left", "above")}
COUNTS: Final = (2, 3, 4, 5)

_COLOUR_NAMES: Final = tuple(COLOURS)
_KIND_WEIGHTS: Final = (0.12, 0.20, 0.36, 0.32)
# A scene's code: kind and relation, count, background, number of things, then three for each thing.
_FIRST_THING: Final = 4
CODE_LENGTH: Final = 13
ANY: Final = -1  # in the code of a caption: the caption omits this attribute
NONE: Final = -2  # in a code: the scene has no such attribute


@dataclass(frozen=True)
class Thing:
    """One shape with its colour and size."""

    shape: str
    colour: str
    size: str


@dataclass(frozen=True)
class Scene:
    """A description of a picture, without exact positions.

    `things` are in reading order. In a pair, the first is left of, above or inside the second. A
    triple is listed from left to right or from top to bottom. A `count` scene shows one thing
    `count` times.
    """

    kind: str
    background: str
    things: tuple[Thing, ...]
    relation: str = ""
    count: int = 1

    @property
    def held_out(self) -> bool:
        """Return whether training never uses this description: one in ten, by its hash."""
        return hashlib.blake2b(repr(self).encode(), digest_size=2).digest()[0] % 10 == 0

    def code(self) -> list[int]:
        """Return the scene as `CODE_LENGTH` integers, to compare captions with scenes."""
        layout = KINDS.index(self.kind) * 4
        if self.relation:
            layout += 1 + RELATIONS[self.kind].index(self.relation)
        code = [layout, self.count, _COLOUR_NAMES.index(self.background), len(self.things)]
        for thing in self.things:
            code += [
                SHAPES.index(thing.shape),
                _COLOUR_NAMES.index(thing.colour),
                SIZES.index(thing.size),
            ]
        return code + [NONE] * (CODE_LENGTH - len(code))


def caption_code(scene: Scene, *, sizes: bool, background: bool) -> list[int]:
    """Return the scene's code, with `ANY` for the attributes that the caption omits."""
    code = scene.code()
    if not background:
        code[2] = ANY
    if not sizes:
        for i in range(len(scene.things)):
            code[_FIRST_THING + 3 * i + 2] = ANY
    return code


def sample_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """Return a random scene, either a held-out one or one for training."""
    while True:
        kind = KINDS[rng.choice(4, p=_KIND_WEIGHTS)]
        background = _pick(rng, _COLOUR_NAMES)
        number = {"pair": 2, "triple": 3}.get(kind, 1)
        things = tuple(
            Thing(_pick(rng, SHAPES), _pick(rng, _COLOUR_NAMES), _pick(rng, SIZES))
            for _ in range(number)
        )
        relation = _pick(rng, RELATIONS[kind]) if kind in RELATIONS else ""
        count = int(rng.choice(COUNTS)) if kind == "count" else 1
        scene = Scene(kind, background, things, relation, count)
        if relation == "inside":
            inner, outer = things
            scene = replace(
                scene, things=(replace(inner, size="small"), replace(outer, size="large"))
            )
        if _is_visible(scene) and scene.held_out == held_out:
            return scene


def similar_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return a hard negative: a scene for training that differs from `scene` in one respect.

    If 50 tries find none, return any scene for training.
    """
    for _ in range(50):
        things = list(scene.things)
        change = rng.integers(6)
        i = int(rng.integers(len(things)))
        other = scene
        if change == 0:
            things[i] = replace(things[i], shape=_pick(rng, SHAPES))
        elif change == 1:
            things[i] = replace(things[i], colour=_pick(rng, _COLOUR_NAMES))
        elif change == 2 and scene.relation != "inside":
            things[i] = replace(things[i], size=_pick(rng, SIZES))
        elif change == 3 and len(things) > 1 and scene.relation != "inside":
            j = (i + 1) % len(things)
            things[i], things[j] = things[j], things[i]
        elif change == 4 and len(things) > 1:
            j = (i + 1) % len(things)
            a, b = things[i], things[j]
            things[i], things[j] = replace(a, colour=b.colour), replace(b, colour=a.colour)
        elif scene.kind == "count":
            other = replace(scene, count=int(rng.choice(COUNTS)))
        elif scene.relation in ("left", "above"):
            other = replace(scene, relation=_pick(rng, ("left", "above")))
        other = replace(other, things=tuple(things))
        if other != scene and _is_visible(other) and not other.held_out:
            return other
    return sample_scene(rng)


def draw_scene(scene: Scene, rng: np.random.Generator, side: int = 256) -> Image.Image:
    """Return an RGB picture of a scene, `side` x `side`. Positions and shades vary with `rng`."""
    image = Image.new("RGB", (side, side), _shade(scene.background, rng))
    draw = ImageDraw.Draw(image)
    for thing, (x, y, radius) in zip(_drawn(scene), _places(scene, rng), strict=True):
        _draw_thing(draw, thing, x * side, y * side, radius * side, _shade(thing.colour, rng))
    return image


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _is_visible(scene: Scene) -> bool:
    """Say whether every thing has another colour than the background and the thing around it.

    Things that are not counted must also differ from each other.
    """
    if any(thing.colour == scene.background for thing in scene.things):
        return False
    if scene.kind != "count" and len(set(scene.things)) < len(scene.things):
        return False
    return scene.relation != "inside" or scene.things[0].colour != scene.things[1].colour


def _drawn(scene: Scene) -> list[Thing]:
    """Return the things in drawing order: the inner thing comes last."""
    if scene.relation == "inside":
        return [scene.things[1], scene.things[0]]
    return list(scene.things) * scene.count


def _places(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Return the centre and the radius of each drawn thing, as fractions of the side."""
    things = _drawn(scene)
    if scene.relation == "inside":
        x, y = rng.uniform(0.32, 0.68, 2)
        return [(x, y, rng.uniform(0.25, 0.29)), (x, y, rng.uniform(0.09, 0.11))]
    large = (0.14, 0.155) if len(things) >= 3 else (0.17, 0.20)
    radii = [rng.uniform(*(large if t.size == "large" else (0.09, 0.105))) for t in things]
    if scene.kind in RELATIONS:
        along = _spread(radii, rng)
        across = [rng.uniform(0.30, 0.70) for _ in things]
        pairs = zip(along, across, strict=True)
        if scene.relation == "left":
            return [(a, b, r) for (a, b), r in zip(pairs, radii, strict=True)]
        return [(b, a, r) for (a, b), r in zip(pairs, radii, strict=True)]
    while True:
        places = [(*rng.uniform(r + 0.02, 0.98 - r, 2), r) for r in radii]
        if all(
            math.dist(p[:2], q[:2]) > p[2] + q[2] + 0.03
            for i, p in enumerate(places)
            for q in places[:i]
        ):
            return places


def _spread(radii: list[float], rng: np.random.Generator) -> list[float]:
    """Return the centres of things with these radii in a row, with random gaps, from 0 to 1."""
    free = 1.0 - 2 * sum(radii) - 0.02 * (len(radii) + 1)
    gaps = 0.02 + rng.dirichlet(np.ones(len(radii) + 1)) * max(free, 0.0)
    places, edge = [], 0.0
    for radius, gap in zip(radii, gaps, strict=False):
        places.append(edge + gap + radius)
        edge += gap + 2 * radius
    return places


def _shade(colour: str, rng: np.random.Generator) -> tuple[int, int, int]:
    r, g, b = np.clip(np.array(COLOURS[colour]) + rng.integers(-10, 11, 3), 0, 255).tolist()
    return r, g, b


def _regular(points: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """Return the corners of a regular polygon or star in the unit circle, the top one first."""
    corners = points if inner == 1.0 else 2 * points
    return [
        (
            (1.0 if i % 2 == 0 else inner) * math.sin(2 * math.pi * i / corners),
            -(1.0 if i % 2 == 0 else inner) * math.cos(2 * math.pi * i / corners),
        )
        for i in range(corners)
    ]


def _heart() -> list[tuple[float, float]]:
    """Return a heart curve. Source: https://mathworld.wolfram.com/HeartCurve.html (eq. 6)."""
    turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(turns) ** 3
    y = 13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)
    return [(float(a) / 16.5, -float(b) / 16.5 - 0.1) for a, b in zip(x, y, strict=True)]


_A: Final = 0.36  # half the width of a cross's arm
_OUTLINES: Final[dict[str, list[tuple[float, float]]]] = {
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(x * 1.08, y * 1.08 + 0.16) for x, y in _regular(3)],
    "star": [(x * 1.1, y * 1.1) for x, y in _regular(5, inner=0.42)],
    "heart": _heart(),
    "diamond": [(0.0, -1.1), (0.8, 0.0), (0.0, 1.1), (-0.8, 0.0)],
    "cross": [
        *((-_A, -1.0), (_A, -1.0), (_A, -_A), (1.0, -_A), (1.0, _A), (_A, _A)),
        *((_A, 1.0), (-_A, 1.0), (-_A, _A), (-1.0, _A), (-1.0, -_A), (-_A, -_A)),
    ],
}


def _draw_thing(
    draw: ImageDraw.ImageDraw,
    thing: Thing,
    x: float,
    y: float,
    radius: float,
    fill: tuple[int, int, int],
) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if thing.shape == "circle":
        draw.ellipse(box, fill=fill)
    elif thing.shape == "ring":
        draw.ellipse(box, outline=fill, width=max(1, round(radius * 0.42)))
    else:
        draw.polygon(
            [(x + a * radius, y + b * radius) for a, b in _OUTLINES[thing.shape]], fill=fill
        )
