"""Pictures of scenes, and picture files."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from models.shapes.scenes import draw_scene, sample_scene


def scene_image(seed: int, side: int = 200) -> Image.Image:
    rng = np.random.default_rng(seed)
    return draw_scene(sample_scene(rng), rng, side)


def file_bytes(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def encoded(data: bytes) -> str:
    """Return bytes in base64."""
    return base64.b64encode(data).decode()
