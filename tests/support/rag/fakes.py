"""An encoder without a model: vectors that follow from the bytes, and a list of what it saw."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

DIM = 16


class NotAPicture(Exception):
    """What an encoder says of bytes that are none."""

    status = 415
    code = "not_an_image"


class FakeEncoder:
    """Embeds any bytes but those that begin with `broken`; `log` is a file of what it embedded."""

    embedding_dim = DIM
    image_batch = 2

    def __init__(self, name: str = "fake", log: Path | None = None) -> None:
        self.model_name = name
        self.pretrained = "random"
        self.weights_digest = "sha256:0"
        self.preprocess_description = "none"
        self.embedded: list[bytes] = []
        self._log = log

    def encode_texts(self, texts: Sequence[str]) -> Any:
        return np.stack([vector_of(text.encode()) for text in texts])

    def encode_images(self, images: Sequence[bytes]) -> Any:
        if any(data.startswith(b"broken") for data in images):
            raise NotAPicture("these bytes are not a picture")
        for data in images:
            self.embedded.append(data)
            if self._log:
                with self._log.open("ab") as log:
                    log.write(hashlib.sha256(data).hexdigest().encode() + b"\n")
        return np.stack([vector_of(data) for data in images])


def vector_of(data: bytes) -> Any:
    """Return the unit vector of some bytes, float32 (16,)."""
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8])
    vector = np.random.default_rng(seed).normal(size=DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)
