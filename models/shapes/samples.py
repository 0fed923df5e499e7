"""Sample pictures: a folder of scenes, each named by what it shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.shapes.captions import caption
from models.shapes.scenes import draw_scene, sample_scene

_SEED = 42
_SIDE = 320


def draw_samples(folder: Path, count: int) -> list[Path]:
    """Write `count` different scenes as PNG files and return their paths.

    The same files come out every time: scenes whose descriptions were never trained on,
    each in a file named by its English caption.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(_SEED)
    paths: list[Path] = []
    while len(paths) < count:
        scene = sample_scene(rng, held_out=True)
        name = caption(scene, "en", np.random.default_rng(_SEED)).replace(",", "").replace(" ", "_")
        path = folder / f"{name}.png"
        if path in paths:
            continue
        image = draw_scene(scene, rng, side=_SIDE)
        if not path.exists():
            image.save(path)
        paths.append(path)
    return paths
