"""An encoder without a model, which computes vectors from the bytes of its input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bento.contract.errors import NotAnImage

DIM = 16


def vector_of(data: bytes) -> Any:
    """Return the unit vector of some bytes, float32 (16,)."""
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8])
    vector = np.random.default_rng(seed).normal(size=DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class FakeEncoder:
    """Embeds any bytes, except those that begin with `broken` or `%PDF`.

    `embedded` lists the embedded bytes. The file `log` gets a line with the hash of each.
    """

    embedding_dim = DIM
    image_batch = 2

    def __init__(
        self,
        name: str = "fake",
        log: Path | None = None,
        vector_of: Callable[[bytes], Any] = vector_of,
    ) -> None:
        self.model_name = name
        self.pretrained = "random"
        self.weights_digest = "sha256:0"
        self.preprocess_description = "none"
        self.embedded: list[bytes] = []
        self._log = log
        self._vector_of = vector_of

    def encode_texts(self, texts: Sequence[str]) -> Any:
        return np.stack([self._vector_of(text.encode()) for text in texts])

    def encode_images(self, images: Sequence[bytes]) -> Any:
        if any(data.startswith((b"broken", b"%PDF")) for data in images):
            raise NotAnImage("these bytes are not a picture")
        for data in images:
            self.embedded.append(data)
            if self._log:
                with self._log.open("ab") as log:
                    log.write(hashlib.sha256(data).hexdigest().encode() + b"\n")
        return np.stack([self._vector_of(data) for data in images])
