"""The inputs of the benchmarks: models, texts and photo-like pictures. All are reproducible."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

ROOT: Final = Path(__file__).resolve().parents[2]
_CHECKPOINTS: Final = ROOT / ".data" / "benchmarks"
_OPENAI_PREPROCESS: Final = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}

_SUBJECTS: Final = {
    "a red bicycle": "червоний велосипед",
    "two dogs": "дві собаки",
    "an old wooden boat": "старий дерев'яний човен",
    "a child with a balloon": "дитина з кулькою",
    "snowy mountains": "засніжені гори",
    "a black cat": "чорний кіт",
    "city lights": "вогні міста",
    "fresh bread": "свіжий хліб",
}
_ENDINGS: Final = {
    "": "",
    " in the snow": " у снігу",
    " at sunset, seen from above": " на заході сонця, вид згори",
    " by the river on a rainy day": " біля річки в дощовий день",
}
TEXTS: Final = tuple(subject + ending for ending in _ENDINGS for subject in _SUBJECTS)
"""32 English queries of 2 to 12 words."""

UKRAINIAN: Final = tuple(
    subject + ending for ending in _ENDINGS.values() for subject in _SUBJECTS.values()
)
"""The same queries in Ukrainian, with about three times as many tokens."""


def checkpoint(model: str) -> str:
    """Return the `MODEL_NAME` of `shapes` or of an OpenCLIP architecture, without a download.

    An architecture gets random weights, which are made once; speed does not depend on their values.
    Raises `SystemExit` for an unknown architecture.
    """
    if model == "shapes":
        return f"local-dir:{ROOT / 'models' / 'shapes'}"
    folder = _CHECKPOINTS / model
    if not folder.exists():
        _make_checkpoint(model, folder)
    return f"local-dir:{folder}"


def _make_checkpoint(model: str, folder: Path) -> None:
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = open_clip.get_model_config(model)
    if config is None:
        raise SystemExit(
            f"--model {model} is unknown: use shapes or a name from open_clip.list_models()"
        )
    print(f"making {model} with random weights", file=sys.stderr, flush=True)
    torch.manual_seed(0)
    weights = open_clip.create_model(model, pretrained=None).state_dict()
    _CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CHECKPOINTS) as temporary:
        made = Path(temporary) / "model"
        made.mkdir()
        file = made / "open_clip_model.safetensors"
        save_file({name: value.contiguous() for name, value in weights.items()}, file)
        file.chmod(0o644)  # because containers run as another user
        described = {"model_cfg": config, "preprocess_cfg": _OPENAI_PREPROCESS}
        (made / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
        made.rename(folder)


def photo(seed: int, width: int, height: int) -> Image.Image:
    """Draw gradients, blobs and fine noise, which JPEG compresses like a photograph."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    tilt = rng.uniform(-90, 90, (2, 3)).astype(np.float32)
    pixels = 128 + (x - 0.5)[..., None] * tilt[0] + (y - 0.5)[..., None] * tilt[1]
    for _ in range(8):
        (left, top), size = rng.random(2), rng.uniform(0.05, 0.25)
        blob = np.exp(-((x - left) ** 2 + (y - top) ** 2) / size**2).astype(np.float32)
        pixels += blob[..., None] * rng.uniform(-90, 90, 3).astype(np.float32)
    pixels += rng.normal(0, 9, (height, width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG") -> bytes:
    """Return the bytes of an image file. A JPEG has quality 85."""
    buffer = io.BytesIO()
    image.save(buffer, format, quality=85)
    return buffer.getvalue()


def photos(count: int) -> list[bytes]:
    """Return different photo-like JPEGs of 320 x 240."""
    return [encoded(photo(seed, 320, 240)) for seed in range(count)]
