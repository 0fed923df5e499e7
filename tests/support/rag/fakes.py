"""A fake encoder, whose vectors are derived from the input bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bento.contract.errors import NotAnImage

DIM = 16


class FakeEncoder:
    """Embed any bytes, except those that start with `broken`.

    `embedded` lists the inputs; the file `log`, if given, lists their digests.
    """

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
            raise NotAnImage("these bytes are not a picture")
        for data in images:
            self.embedded.append(data)
            if self._log:
                with self._log.open("ab") as log:
                    log.write(hashlib.sha256(data).hexdigest().encode() + b"\n")
        return np.stack([vector_of(data) for data in images])


def vector_of(data: bytes) -> Any:
    """Return a unit vector, float32 (16,), derived from the bytes."""
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8])
    vector = np.random.default_rng(seed).normal(size=DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)
