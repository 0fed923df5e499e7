"""Where vectors are kept: one interface, two engines (embedded, or a Qdrant server)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol
from uuid import UUID

import numpy as np
import numpy.typing as npt

from rag.errors import CollectionMismatch, CollectionNotFound, InvalidSearch
from rag.settings import RagSettings

MAX_TOP_K = 10_000
TENANT_FIELD = "dao_id"  # the payload field with a keyword index, marked as the tenant

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

        Of several points with the same id the last one stays. Raises `InvalidSearch` for
        what `check_points` refuses.
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
        """Return the `top_k` most similar points, best first; of one tenant if given.

        Leaves out points whose score is below `score_threshold`. Raises `InvalidSearch` for a
        vector, `top_k` (1 to 10000) or threshold that cannot be used.
        """

    def count(self, *, dao_id: str | None = None) -> int:
        """Return the exact number of points; of one tenant if given."""


class Store(Protocol):
    """A place that holds collections."""

    def open(self, name: str, identity: ModelIdentity, *, create: bool = True) -> Collection:
        """Open a collection, creating it when missing unless `create` is false.

        Raises `CollectionMismatch` when it holds vectors of another model, and
        `CollectionNotFound`.
        """

    def info(self, name: str) -> CollectionInfo | None:
        """Return what a collection holds, or None when there is none of that name."""

    def close(self) -> None:
        """Flush what is pending and release files and connections."""


def open_store(settings: RagSettings) -> Store:
    """Open the Qdrant server at `qdrant_host`, or without one the store at `qdrant_path`.

    Raises `StoreLocked` when another process owns the embedded store. A server is first
    spoken to when a collection is opened: that raises `StoreUnavailable`.
    """
    # Imported here, so that one engine works where the other is not installed.
    if settings.qdrant_host:
        from rag.server import ServerStore

        return ServerStore.connect(settings)
    from rag.edge import EdgeStore

    return EdgeStore(settings.qdrant_path)


def missing(name: str) -> CollectionNotFound:
    """Return the error for a collection that is not there."""
    return CollectionNotFound(
        f"there is no collection {name!r}: nothing was indexed in it yet "
        "(vision-rag index FOLDER does)"
    )


def check_identity(name: str, held: ModelIdentity, wanted: ModelIdentity) -> None:
    """Raise `CollectionMismatch` unless the collection holds vectors of the wanted model."""
    if held == wanted:
        return
    differ = "; ".join(
        f"{f.name}: {getattr(held, f.name)} against {getattr(wanted, f.name)}"
        for f in fields(held)
        if getattr(held, f.name) != getattr(wanted, f.name)
    )
    raise CollectionMismatch(
        f"the collection {name!r} holds vectors of {_describe(held)}, but this encoder is "
        f"{_describe(wanted)}, and vectors made differently cannot be compared ({differ}): "
        f"{reindex_advice(name)}"
    )


def reindex_advice(name: str) -> str:
    """Say how to go on when a collection cannot be used with this encoder."""
    return (
        f"index the images again into another collection, named by IMAGE_SEARCH_COLLECTION, "
        f"or delete the collection {name!r} and index into it again"
    )


def identity_to_json(identity: ModelIdentity) -> dict[str, Any]:
    """Return the identity as both engines write it beside a collection."""
    return asdict(identity)


def identity_from_json(name: str, data: Any) -> ModelIdentity:
    """Return the identity that `identity_to_json` wrote.

    Raises `CollectionMismatch` when it is not there or not whole: the collection was made by
    something else, so nobody knows what its vectors mean.
    """
    try:
        identity = ModelIdentity(**{f.name: data[f.name] for f in fields(ModelIdentity)})
    except (KeyError, TypeError):
        raise CollectionMismatch(
            f"the collection {name!r} does not say which model made its vectors, so it was not "
            "made by this program, or on a Qdrant server older than 1.16, which does not keep "
            f"that: {reindex_advice(name)}"
        ) from None
    return identity


def check_name(name: str) -> None:
    """Raise `InvalidSearch` unless `name` can name a collection (and a folder)."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise InvalidSearch(
            f"the collection name {name[:80]!r} is not allowed: use 1 to 64 of the characters "
            "A-Z, a-z, 0-9, _ and -"
        )


def check_id(id: str) -> str:
    """Return a UUID as Qdrant writes it, lower case with hyphens; else raise `InvalidSearch`."""
    try:
        return str(UUID(id))
    except (ValueError, TypeError, AttributeError):
        raise InvalidSearch(f"the id {str(id)[:80]!r} is not a UUID") from None


def check_vector(vector: Vector, dimension: int, what: str) -> Vector:
    """Return a float32 (dimension,) of length 1 that points the same way.

    Qdrant takes NaN without a word, and its cosine leaves vectors shorter than 0.0003 as they
    are and turns those longer than 1e19 into zeros: so they are normalised here, in float64.
    Raises `InvalidSearch`, its sentence starting with `what`.
    """
    try:
        given = np.asarray(vector, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidSearch(f"{what} is not a list of {dimension} numbers") from None
    if given.shape != (dimension,):
        raise InvalidSearch(
            f"{what} has the shape {given.shape}; the collection takes ({dimension},)"
        )
    if not np.isfinite(given).all():
        raise InvalidSearch(f"{what} has a NaN or an infinity; only finite numbers are allowed")
    largest = np.abs(given).max()
    if largest == 0:
        raise InvalidSearch(f"{what} is all zeros, which has no direction to compare")
    scaled = given / largest  # so that no square overflows or vanishes
    unit: Vector = (scaled / np.linalg.norm(scaled)).astype(np.float32)
    return unit


def check_points(points: Sequence[Point], dimension: int) -> list[Point]:
    """Return points as both engines can write them, the last one of each id.

    Ids as `check_id` and vectors as `check_vector` give them, payloads as JSON gives them back.
    Raises `InvalidSearch` for the first id, vector or payload that cannot be kept.
    """
    checked = {}
    for point in points:
        id = check_id(point.id)
        checked[id] = Point(
            id,
            check_vector(point.vector, dimension, f"the vector of point {id}"),
            _check_payload(point.payload, id),
        )
    return list(checked.values())


def check_query(top_k: int, score_threshold: float | None) -> None:
    """Raise `InvalidSearch` for a number of results or a threshold that cannot be used."""
    if not 1 <= top_k <= MAX_TOP_K:
        raise InvalidSearch(f"top_k is {top_k}; allowed are 1 to {MAX_TOP_K}")
    if score_threshold is not None and not math.isfinite(score_threshold):
        raise InvalidSearch(f"score_threshold is {score_threshold}; it must be finite")


def _check_payload(payload: Payload, id: str) -> Payload:
    try:
        text = json.dumps(payload, allow_nan=False, ensure_ascii=False)
        text.encode()  # a lone surrogate is found here
        plain: Payload = json.loads(text, parse_int=_int64)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSearch(
            f"the payload of point {id} cannot be written as JSON: {error}"
        ) from None
    return plain


def _int64(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{digits} does not fit into 64 bits")
    return number


def _describe(identity: ModelIdentity) -> str:
    return (
        f"{identity.model_name}/{identity.pretrained} "
        f"(weights {identity.weights_digest}, {identity.dimension} dimensions)"
    )
