"""Sample pictures of scenes, in files that are named by their captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.shapes.captions import caption
from models.shapes.scenes import draw_scene, sample_scene

_SEED = 42
_SIDE = 320


def draw_samples(folder: Path, count: int) -> list[Path]:
    """Write `count` different held-out scenes as PNG files, and return their paths.

    The files are the same every time. Each is named by the English caption of its scene.
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
