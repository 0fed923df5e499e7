"""Measure the text-to-image recall of the bundled model on held-out scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import torch

from models.shapes.captions import LANGUAGES, caption
from models.shapes.scenes import KINDS, Scene, draw_scene, sample_scene

_SEED = 2026
_BATCH = 100


def evaluate(folder: Path, count: int) -> str:
    """Return a Markdown table of recall@1 and recall@5 over `count` different held-out scenes.

    The table has a row for each language and kind of scene. The model is used through OpenCLIP,
    without the code of this project.
    """
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    rng = np.random.default_rng(_SEED)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng, held_out=True)
        if scene not in scenes:
            scenes.append(scene)
    kinds = np.array([scene.kind for scene in scenes])
    with torch.inference_mode():
        images = torch.cat(
            [
                model.encode_image(
                    torch.stack([preprocess(draw_scene(scene, rng)) for scene in part]),
                    normalize=True,
                )
                for part in _batches(scenes)
            ]
        )
        lines = ["| language | kind | scenes | recall@1 | recall@5 |", "|---|---|---|---|---|"]
        for language in LANGUAGES:
            texts = torch.cat(
                [
                    model.encode_text(
                        tokenizer([caption(scene, language, rng) for scene in part]),
                        normalize=True,
                    )
                    for part in _batches(scenes)
                ]
            )
            similarity = texts @ images.T  # (texts, images)
            rank = (similarity > similarity.diagonal()[:, None]).sum(1).numpy()
            for kind in ("all", *KINDS):
                ranks = rank[kinds == kind] if kind != "all" else rank
                lines.append(
                    f"| {language} | {kind} | {len(ranks)} "
                    f"| {(ranks < 1).mean():.3f} | {(ranks < 5).mean():.3f} |"
                )
    return "\n".join(lines)


def _batches(scenes: list[Scene]) -> list[list[Scene]]:
    return [scenes[i : i + _BATCH] for i in range(0, len(scenes), _BATCH)]
