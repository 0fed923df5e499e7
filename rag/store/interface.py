"""The interface of a vector store, which two engines implement: embedded, and a Qdrant server."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from bento.contract.filters import TENANT_FIELD, Filter

GENERATION: Final = re.compile(r"[0-9a-f]{8}")  # the form of `ModelIdentity.generation`
KEYWORD_FIELDS: Final = (TENANT_FIELD, "tags", "category")  # the fields with a payload index

Vector = npt.NDArray[np.float32]
Payload = dict[str, Any]


@dataclass(frozen=True)
class ModelIdentity:
    """The model, weights and preprocessing of a collection's vectors.

    Only vectors of the same identity are comparable.
    """

    model_name: str
    pretrained: str
    weights_digest: str
    preprocess: str
    dimension: int
    normalized: bool = True

    @property
    def generation(self) -> str:
        """The name of this model's version of a collection: 8 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True)
        return sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Point:
    """One vector with its payload; `id` is a UUID."""

    id: str
    vector: Vector  # float32 (dimension,)
    payload: Payload


@dataclass(frozen=True)
class Record:
    """A stored point. `vector`, float32 (dimension,) of length 1, is present only on request."""

    id: str
    payload: Payload
    vector: Vector | None = None


@dataclass(frozen=True)
class Match:
    """A point that matches a query; `score` is the cosine similarity, at most 1."""

    id: str
    score: float
    payload: Payload
    vector: Vector | None = None  # as in `Record`


class Collection(Protocol):
    """One version of a collection. Calls are synchronous and thread-safe."""

    name: str
    identity: ModelIdentity

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert or replace points; all are checked before any is written.

        If several points have the same id, the last one is written. Raises `InvalidSearch` as
        `check_points` does.
        """

    def overwrite_payloads(self, payloads: Mapping[str, Payload]) -> int:
        """Replace the payloads of the ids that exist, and return their number.

        Vectors do not change. All payloads are checked before any is written.
        """

    def retrieve(
        self,
        ids: Sequence[str],
        *,
        with_vectors: bool = False,
        fields: Sequence[str] | None = None,
    ) -> dict[str, Record]:
        """Return the points that exist, under the ids as the caller wrote them.

        Their payloads have all fields, or only `fields`.
        """

    def delete(self, ids: Sequence[str]) -> int:
        """Delete points by id, and return the number of those that existed."""

    def query(
        self,
        vector: Vector,
        top_k: int,
        *,
        offset: int = 0,
        filter: Filter | None = None,
        score_threshold: float | None = None,
        with_vectors: bool = False,
        fields: Sequence[str] | None = None,
    ) -> list[Match]:
        """Return the `top_k` most similar points after the first `offset`, best first.

        They pass `filter`, and their scores are at least `score_threshold`. Their payloads have all
        fields, or only `fields`. Equal scores are in
        the order of ids, except that the engine chooses among those at place `MAX_DEPTH`. Raises
        `InvalidSearch` for an unusable vector, `top_k`, `offset` or threshold.
        """

    def scroll(
        self, *, filter: Filter | None = None, limit: int = 1000, start: str | None = None
    ) -> tuple[list[Record], str | None]:
        """Return points in the order of their ids from `start`, and the next page's `start`.

        On the last page, the second value is None. Raises `InvalidSearch` for an unusable `limit`
        or `start`.
        """

    def count(self, *, filter: Filter | None = None) -> int:
        """Return the exact number of points that pass `filter`."""


class Store(Protocol):
    """A place that holds collections.

    A collection has one version for each model that filled it, named by
    `ModelIdentity.generation`. One version is published: searches by the collection's name use
    it. The others are staged.
    """

    def open(
        self, name: str, identity: ModelIdentity, *, create: bool = True, staged: bool = False
    ) -> Collection:
        """Open the published version; create and publish one if there is none.

        If `staged`, open the version of `identity`, published or not.
        Raises `CollectionMismatch` when the published version holds another model's vectors, and
        `CollectionNotFound` when there is no version and `create` is false.
        """

    def published(self, name: str) -> Collection | None:
        """Open the published version, whichever model filled it; None if there is none."""

    def generations(self, name: str) -> Sequence[Collection]:
        """Open all versions, the published one first."""

    def publish(self, name: str, identity: ModelIdentity) -> None:
        """Publish the version of `identity` atomically.

        The version that it replaces is kept, unpublished, until it is dropped. Raises
        `CollectionNotFound` when `identity` has no version.
        """

    def drop(self, name: str, generation: str) -> bool:
        """Delete an unpublished version; return False if there is no version of that name.

        Raises `InvalidSearch` for the published one.
        """

    def close(self) -> None:
        """Flush pending writes, and release files and connections."""
