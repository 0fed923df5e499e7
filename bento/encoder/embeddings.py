"""Embeddings as NumPy arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.float32]


def normalized(embeddings: Embeddings) -> Embeddings:
    """Return embeddings (…, dim) divided by their L2 norm, float32. Zero vectors stay zero."""
    norm = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return np.asarray(embeddings / np.maximum(norm, 1e-12), np.float32)
