"""What the service answers: typed dictionaries, the JSON of its routes, and embeddings.

A function that reads an answer raises, whatever it is, for any other answer.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict

from router_client.client.waiting import Answer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Embedding: TypeAlias = npt.NDArray[np.float32] | list[float]
    Embeddings: TypeAlias = npt.NDArray[np.float32] | list[list[float]]

NPY: Final = "application/x-npy"

Outcome = Literal["indexed", "updated", "unchanged"]


class Health(TypedDict):
    status: str
    device: str
    model: str  # NAME/PRETRAINED
    cuda_available: bool
    gpu_name: str | None


class Info(TypedDict):
    model_name: str
    pretrained: str
    device: str
    dtypes: dict[str, str]  # of the text and of the image tower
    embedding_dim: int
    context_length: int
    preprocess: str
    weights_digest: str
    normalize_default: bool
    image_formats: list[str]
    max_image_bytes: int
    max_image_pixels: int
    max_request_bytes: int
    max_request_items: int
    image_urls: bool
    qdrant_enabled: bool
    collection: str | None
    version: str
    revision: str | None


class RankedText(TypedDict):
    text: str
    probability: float
    score: float  # cosine similarity


class Hit(TypedDict):
    id: str
    score: float  # cosine similarity, best 1
    path: str
    payload: dict[str, Any]
    group: str | int | None


class SearchAnswer(TypedDict):
    """Hits, best first; or, in `search_many`, why there are none (`success` false)."""

    success: bool
    hits: list[Hit]
    count: int
    next_offset: int | None
    model: str | None
    formatted_text: str
    error: str | None
    code: str | None


class IndexedImage(TypedDict):
    id: str
    dao_id: str
    path: str
    payload: dict[str, Any]


class Stats(TypedDict):
    collection: str
    points: int
    model: str
    dimension: int
    generation: str
    generations: dict[str, int]
    serving: str


class Published(TypedDict):
    collection: str
    generation: str
    replaced: str | None


class ImageExample(TypedDict, total=False):
    """An image to search by: exactly one of these."""

    image_base64: str
    image_url: str
    id: str  # of an indexed picture


class Examples(TypedDict, total=False):
    text: str | list[str] | None
    image: ImageExample | list[ImageExample] | None
    weights: list[float] | None


class SearchOptions(TypedDict, total=False):
    """What a search may have besides its text, as `POST /search` takes it."""

    image: ImageExample | list[ImageExample] | None
    weights: list[float] | None
    negative: Examples | None
    top_k: int | None
    offset: int
    dao_id: str | None
    filter: dict[str, Any] | None
    score_threshold: float | None
    group_by: str | None
    group_size: int
    diversity: float | None
    language: Literal["uk", "en"]
    collection: str | None


def read_json(answer: Answer) -> Any:
    """Return the JSON object that an answer is."""
    body = json.loads(answer.content)
    if not isinstance(body, dict):
        raise ValueError("not an object")
    return body


def read_search(answer: Answer) -> Any:
    """Return what a search answered."""
    body = read_json(answer)
    body["hits"], body["formatted_text"]  # or it was no search's answer
    return body


def read_embedding(answer: Answer) -> Any:
    """Return the embedding that an answer has, (dim,)."""
    if _is_npy(answer):
        return _checked(_load(answer), 1)
    return _vector(read_json(answer)["embedding"])


def read_embeddings(answer: Answer, count: int) -> Any:
    """Return the embeddings that an answer has, (count, dim); a missing one is None, or NaN."""
    if _is_npy(answer):
        rows = _checked(_load(answer), 2)
    else:
        rows = [r if r is None else _vector(r) for r in read_json(answer)["embeddings"]]
    if len(rows) != count:
        raise ValueError(f"{len(rows)} embeddings for {count} items")
    return rows


def numpy_or_none() -> Any:
    """Return numpy where it is installed; it is imported when first needed."""
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
        raise ValueError(f"an array of {array.dtype} {array.shape}")
    return array
