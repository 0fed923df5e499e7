"""The same encoder behind BentoML's `batchable=True`, for `benchmarks.batching` to compare with."""

from __future__ import annotations

import bentoml
import numpy as np
import numpy.typing as npt

from bento import Encoder, Settings

settings = Settings()


@bentoml.service(
    name="batchable",
    http={"host": settings.host, "port": settings.port},
    logging={"access": {"enabled": False}},
)
class Batchable:
    """One batchable method; BentoML gathers the batches."""

    def __init__(self) -> None:
        self.encoder = Encoder.load(settings)

    @bentoml.api(batchable=True, max_batch_size=settings.max_batch_size, max_latency_ms=60_000)
    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        return self.encoder.encode_texts(texts)
