"""Read embeddings from the service's answers: .npy if numpy is installed, otherwise JSON.

The `read_…` functions raise arbitrary exceptions for malformed answers. `Sender` handles them.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, TypeAlias

from bento.contract.embedding import NPY
from router_client.client.waiting import Answer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Embedding: TypeAlias = npt.NDArray[np.float32] | list[float]
    Embeddings: TypeAlias = npt.NDArray[np.float32] | list[list[float]]


def accepted() -> dict[str, str] | None:
    """Return the header that asks for .npy, or None if numpy is not installed."""
    return {"Accept": NPY} if numpy_or_none() else None


def read_json(answer: Answer) -> Any:
    """Parse an answer as a JSON object."""
    body = json.loads(answer.content)
    if not isinstance(body, dict):
        raise ValueError("not an object")
    return body


def read_embedding(answer: Answer) -> Any:
    """Return the embedding in an answer, of shape (dim,)."""
    if _is_npy(answer):
        return _checked(_load(answer), 1)
    return _vector(read_json(answer)["embedding"])


def read_embeddings(answer: Answer, count: int) -> Any:
    """Return the embeddings in an answer, of shape (count, dim).

    The row of an image that could not be embedded is None in JSON and NaN in .npy.
    """
    if _is_npy(answer):
        rows = _checked(_load(answer), 2)
    else:
        rows = [r if r is None else _vector(r) for r in read_json(answer)["embeddings"]]
    if len(rows) != count:
        raise ValueError(f"{len(rows)} embeddings for {count} items")
    return rows


def numpy_or_none() -> Any:
    """Import numpy on first use. Return None if it is not installed."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def _is_npy(answer: Answer) -> bool:
    return str(answer.headers.get("Content-Type", "")).startswith(NPY)


def _load(answer: Answer) -> Any:
    return numpy_or_none().load(io.BytesIO(answer.content), allow_pickle=False)


def _vector(row: Any) -> Any:
    if not isinstance(row, list) or not row or not all(isinstance(x, int | float) for x in row):
        raise TypeError("not a list of numbers")
    numpy = numpy_or_none()
    return numpy.asarray(row, numpy.float32) if numpy else row


def _checked(array: Any, dimensions: int) -> Any:
    if array.ndim != dimensions or array.dtype.kind != "f" or not array.shape[-1]:
        raise ValueError(f"unexpected array: {array.dtype} {array.shape}")
    return array
