"""Where vectors are kept: one interface, two engines (embedded, or a Qdrant server)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rag.errors import CollectionMismatch, InvalidSearch
from rag.settings import RagSettings

Vector = npt.NDArray[np.float32]
Payload = dict[str, Any]


@dataclass(frozen=True)
class ModelIdentity:
    """What made the vectors of a collection: only vectors made alike can be compared."""

    model_name: str
    pretrained: str
    weights_digest: str
    preprocess: str
    dimension: int
    normalized: bool = True


@dataclass(frozen=True)
class Point:
    """One vector with its payload; `id` is a UUID."""

    id: str
    vector: Vector  # float32 (dimension,)
    payload: Payload


@dataclass(frozen=True)
class Match:
    """A point found by a query; `score` is the cosine similarity, best 1."""

    id: str
    score: float
    payload: Payload


@dataclass(frozen=True)
class CollectionInfo:
    """What a collection holds."""

    name: str
    points: int
    identity: ModelIdentity


class Collection(Protocol):
    """An open collection. Calls are synchronous and safe from several threads."""

    name: str
    identity: ModelIdentity

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert or replace points; all are checked before any is written.

        Raises `InvalidSearch` for a vector of another dimension or with a NaN or infinity.
        """

    def retrieve(self, ids: Sequence[str]) -> dict[str, Payload]:
        """Return the payloads of those ids that exist."""

    def delete(self, ids: Sequence[str]) -> int:
        """Delete points by id and return how many existed."""

    def query(
        self,
        vector: Vector,
        top_k: int,
        *,
        dao_id: str | None = None,
        score_threshold: float | None = None,
    ) -> list[Match]:
        """Return the `top_k` most similar points, best first; of one tenant if given."""

    def count(self, *, dao_id: str | None = None) -> int:
        """Return the exact number of points; of one tenant if given."""


class Store(Protocol):
    """A place that holds collections."""

    def open(self, name: str, identity: ModelIdentity) -> Collection:
        """Open a collection, creating it when missing.

        Raises `CollectionMismatch` when it holds vectors of another model.
        """

    def info(self, name: str) -> CollectionInfo | None:
        """Return what a collection holds, or None when there is none of that name."""

    def close(self) -> None:
        """Flush what is pending and release files and connections."""
