"""Build the query of a search: one vector from all examples, one filter from all conditions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import numpy as np

from bento.contract.errors import InvalidSearch
from bento.contract.filters import Filter, all_of, both, match_any, none_of, tenant
from bento.contract.images import DEFAULT_DAO_ID
from bento.contract.search import Examples, ImageExample, SearchRequest
from rag.pictures.index import PictureIndex
from rag.search.work import Work
from rag.store.interface import Vector

NEGATIVE_WEIGHT: Final = 0.5  # of a negative example; a positive one weighs 1


class Embedder(Protocol):
    """Embeds examples; the service passes `bento.runners.runners.Runners`."""

    async def embed_text(self, text: str, *, normalize: bool) -> Vector:
        """Return the embedding of a text, float32 (dimension,)."""

    async def embed_image(self, data: bytes, *, normalize: bool) -> Vector:
        """Return the embedding of a picture file's bytes, float32 (dimension,)."""


Fetch = Callable[[ImageExample], Awaitable[bytes]]  # returns the bytes of an example's file


async def query_vector(request: SearchRequest, vectors: Vectors) -> Vector:
    """Return the query vector of a search, float32 (dimension,) of length 1."""
    return compose(
        await vectors.of(request, 1.0),
        await vectors.of(request.negative, NEGATIVE_WEIGHT) if request.negative else [],
    )


def compose(
    positive: Sequence[tuple[Vector, float]], negative: Sequence[tuple[Vector, float]]
) -> Vector:
    """Return the weighted sum of the examples, float32 (dimension,) of length 1.

    Negative examples are subtracted. Only the proportions of the weights count. Raises
    `InvalidSearch` if the examples cancel each other out.
    """
    signed = [*positive, *((vector, -weight) for vector, weight in negative)]
    weights = np.array([weight for _, weight in signed], np.float64)
    vectors = np.array([vector for vector, _ in signed], np.float64)
    total = (weights / np.abs(weights).max()) @ vectors
    length = np.linalg.norm(total)
    if length < 1e-6:
        raise InvalidSearch(
            "the positive and negative examples cancel each other out: change a weight or an "
            "example"
        )
    return np.asarray(total / length, np.float32)


class Vectors:
    """Returns the vectors of examples: embeds them, or reads those of indexed pictures."""

    def __init__(
        self,
        pictures: PictureIndex,
        embedder: Embedder,
        fetch: Fetch,
        work: Work,
        collection: str,
        dao_id: str,
    ) -> None:
        self._pictures = pictures
        self._embedder = embedder
        self._fetch = fetch
        self._work = work
        self._collection = collection
        self._dao_id = dao_id

    async def of(self, examples: Examples, weight: float) -> list[tuple[Vector, float]]:
        """Return each example's vector, float32 (dimension,), and its weight.

        `weight` counts for all examples if the request gives no weights.
        """
        vectors = await asyncio.gather(
            *(self._embedder.embed_text(text, normalize=True) for text in examples.texts),
            *(self._image(image) for image in examples.images),
        )
        return list(zip(vectors, examples.weights or [weight] * len(vectors), strict=True))

    async def _image(self, example: ImageExample) -> Vector:
        if example.id is None:
            return await self._embedder.embed_image(await self._fetch(example), normalize=True)
        record = await self._work(
            self._pictures.record, example.id, self._dao_id, self._collection, with_vector=True
        )
        assert record.vector is not None  # noqa: S101 (with_vector=True returns one)
        return record.vector


def filter_of(request: SearchRequest) -> Filter | None:
    """Combine the tenant and the conditions of a request, and exclude its example pictures."""
    wanted = None if request.dao_id is None else tenant(request.dao_id)
    if request.filter is not None:
        wanted = both(wanted, request.filter)
    images = [*request.images, *(request.negative.images if request.negative else [])]
    ids = list(dict.fromkeys(image.id for image in images if image.id is not None))
    if ids:
        mine = all_of(tenant(request.dao_id or DEFAULT_DAO_ID), match_any("image_id", ids))
        wanted = both(wanted, none_of(mine))
    return wanted
