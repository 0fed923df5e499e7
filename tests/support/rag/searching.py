"""A hundred pictures with fixed random vectors, and a search over them.

Every expected order follows from these vectors, or from qdrant-client's own grouping and MMR.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from bento.contract.embedding import base64_bytes
from bento.contract.search import ImageExample, SearchRequest, SearchResponse
from rag.pictures.index import Picture, PictureIndex
from rag.search.limits import DEFAULT_LIMITS, Limits
from rag.search.searcher import Searcher
from rag.settings import RagSettings
from rag.store.edge.store import EdgeStore
from rag.store.interface import ModelIdentity, Store, Vector
from tests.support.rag.stores import local_mode

DIM: Final = 16
IDENTITY: Final = ModelIdentity("fake", "random", "sha256:0", "none", DIM)
CATEGORIES: Final = ("cat", "dog", "bird")


def vector_of(content: object) -> Vector:
    """Return a fixed random unit vector for anything."""
    seed = int.from_bytes(hashlib.sha256(str(content).encode()).digest()[:4])
    vector = np.random.default_rng(seed).normal(size=DIM)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


class FakeEmbedder:
    """Returns `vector_of` a text, or of a picture's bytes."""

    async def embed_text(self, text: str, *, normalize: bool) -> Vector:
        assert normalize
        return vector_of(text)

    async def embed_image(self, data: bytes, *, normalize: bool) -> Vector:
        assert normalize
        return vector_of(data)


async def fetch(example: ImageExample) -> bytes:
    assert example.image_base64 is not None
    return base64_bytes(example.image_base64)


def picture(n: int) -> Picture:
    """Return picture n, of the tenant `ours` if n is below 60, else of `theirs`."""
    metadata = {
        "title": f"picture {n}",
        "category": CATEGORIES[n % 3],
        "tags": [f"t{n % 4}", f"t{n % 5}"],
        "n": n,
        "camera": {"lens": f"{n % 2 + 1}x", "of.whom": n % 7},
    }
    if n % 10 == 0:
        del metadata["category"]
    dao_id = "ours" if n < 60 else "theirs"
    return Picture(f"id{n}", f"picture {n}".encode(), f"/pictures/{n}.jpg", dao_id, metadata)


PICTURES: Final = [picture(n) for n in range(100)]
VECTORS: Final = np.stack([vector_of(p.data) for p in PICTURES])


def store_of(kind: str, folder: Path) -> Store:
    return EdgeStore(folder) if kind == "embedded" else local_mode()


def find(index: PictureIndex, *, limits: Limits = DEFAULT_LIMITS, **fields: Any) -> SearchResponse:
    request = SearchRequest(**fields)
    settings = RagSettings(
        _env_file=None, image_search_collection="pictures", image_search_default_top_k=5
    )
    searcher = Searcher(index, FakeEmbedder(), fetch, settings, "fake/random", limits=limits)
    return asyncio.run(searcher.search(request))


def best(query: Any, among: Callable[[int], object] = lambda n: True) -> list[int]:
    """Return picture numbers by cosine similarity to a query vector, best first."""
    order = np.argsort(-(VECTORS @ query), kind="stable")
    return [int(n) for n in order if among(int(n))]


def numbers(answer: SearchResponse) -> list[int]:
    return [hit.payload["n"] for hit in answer.hits]
