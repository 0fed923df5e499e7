"""The same encoder served by BentoML with `batchable=True` and without batching."""

from __future__ import annotations

from typing import Any, Final

import bentoml
import numpy as np
import numpy.typing as npt
from PIL import Image

from bento import Encoder, Settings

settings = Settings()
_SERVICE: Final[dict[str, Any]] = {
    "http": {"host": settings.host, "port": settings.port},
    "logging": {"access": {"enabled": False}},
}
_BATCHES: Final[dict[str, Any]] = {
    "batchable": True,
    "max_batch_size": settings.max_batch_size,
    "max_latency_ms": 60_000,
}


class _Encoding:
    def __init__(self) -> None:
        self.encoder = Encoder.load(settings)


@bentoml.service(name="batchable", **_SERVICE)
class Batchable(_Encoding):
    """BentoML forms the batches."""

    @bentoml.api(route="/embed/texts", **_BATCHES)
    def embed_texts(self, texts: list[str]) -> npt.NDArray[np.float32]:
        return self.encoder.encode_texts(texts)

    @bentoml.api(route="/embed/images", **_BATCHES)
    def embed_images(self, files: list[Image.Image]) -> npt.NDArray[np.float32]:
        return self.encoder.encode_images(files)


@bentoml.service(name="unbatched", **_SERVICE)
class Unbatched(_Encoding):
    """Each request is a batch of its own."""

    @bentoml.api(route="/embed/texts")
    def embed_texts(self, texts: list[str]) -> npt.NDArray[np.float32]:
        return self.encoder.encode_texts(texts)

    @bentoml.api(route="/embed/images")
    def embed_images(self, files: list[Image.Image]) -> npt.NDArray[np.float32]:
        return self.encoder.encode_images(files)
