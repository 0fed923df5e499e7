"""Where vectors are kept: one interface, two engines (embedded, or a Qdrant server)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any, Protocol
from uuid import UUID

import numpy as np
import numpy.typing as npt

from bento.contract.errors import CollectionMismatch, CollectionNotFound, InvalidSearch
from bento.contract.filters import TENANT_FIELD, Filter
from rag.settings import RagSettings

MAX_DEPTH = 10_000  # offset and top_k of a query together
# Of objects and lists in a payload. The embedded engine writes some 127 and then cannot read them,
# nor what is stored beside them; a server's protocol carries some 30.
MAX_LEVELS = 20
GENERATION = re.compile(r"[0-9a-f]{8}")  # what `ModelIdentity.generation` gives
KEYWORD_FIELDS = (TENANT_FIELD, "tags", "category")  # payload fields with an index

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

    @property
    def generation(self) -> str:
        """What a collection's generation of this model is called: 8 hexadecimal digits."""
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
    """A stored point; `vector` only when it was asked for, float32 (dimension,), length 1."""

    id: str
    payload: Payload
    vector: Vector | None = None


@dataclass(frozen=True)
class Match:
    """A point found by a query; `score` is the cosine similarity, best 1."""

    id: str
    score: float
    payload: Payload
    vector: Vector | None = None  # only when it was asked for, length 1


class Collection(Protocol):
    """One generation of a collection. Calls are synchronous and safe from several threads."""

    name: str
    identity: ModelIdentity

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert or replace points; all are checked before any is written.

        Of several points with the same id the last one stays. Raises `InvalidSearch` for
        what `check_points` refuses.
        """

    def overwrite_payloads(self, payloads: Mapping[str, Payload]) -> int:
        """Replace the payloads of those ids that exist, and return how many did.

        Vectors stay. All payloads are checked before any is written.
        """

    def retrieve(self, ids: Sequence[str], *, with_vectors: bool = False) -> dict[str, Record]:
        """Return those points that exist, by the ids as they were given."""

    def delete(self, ids: Sequence[str]) -> int:
        """Delete points by id and return how many existed."""

    def query(
        self,
        vector: Vector,
        top_k: int,
        *,
        offset: int = 0,
        filter: Filter | None = None,
        score_threshold: float | None = None,
        with_vectors: bool = False,
    ) -> list[Match]:
        """Return the `top_k` most similar points after the first `offset`, best first.

        Only those that pass `filter` and whose score is not below `score_threshold`; equal scores
        in the order of ids (of those at the `MAX_DEPTH`-th place the engine chooses). Raises
        `InvalidSearch` for a vector, `top_k`, `offset` or threshold that cannot be used.
        """

    def scroll(
        self, *, filter: Filter | None = None, limit: int = 1000, start: str | None = None
    ) -> tuple[list[Record], str | None]:
        """Return points in the order of their ids, from `start`, and where to go on.

        The second is None at the end. Raises `InvalidSearch` for a `limit` or `start` that cannot
        be used.
        """

    def count(self, *, filter: Filter | None = None) -> int:
        """Return the exact number of points; of those that pass `filter`."""


class Store(Protocol):
    """A place that holds collections.

    A collection has one *generation* for each model that filled it, named by
    `ModelIdentity.generation`. One of them is published: it is what the collection's name means.
    """

    def open(
        self, name: str, identity: ModelIdentity, *, create: bool = True, staged: bool = False
    ) -> Collection:
        """Open the published generation, creating it when nothing is published.

        With `staged` open the generation of `identity`, published or not.
        Raises `CollectionMismatch` when what is published holds vectors of another model, and
        `CollectionNotFound` when there is nothing and `create` is false.
        """

    def published(self, name: str) -> Collection | None:
        """Open what is published, whichever model made it; None when nothing is."""

    def generations(self, name: str) -> Sequence[Collection]:
        """Open all generations, the published one first."""

    def publish(self, name: str, identity: ModelIdentity) -> None:
        """Make the generation of `identity` the published one, in one step.

        The one that was published stays, unpublished, until it is dropped. Raises
        `CollectionNotFound` when there is no such generation.
        """

    def drop(self, name: str, generation: str) -> bool:
        """Delete an unpublished generation and say whether it was there.

        Raises `InvalidSearch` for the published one.
        """

    def close(self) -> None:
        """Flush what is pending and release files and connections."""


def open_store(settings: RagSettings) -> Store:
    """Open the Qdrant server at `qdrant_host`, or without one the store at `qdrant_path`.

    Raises `StoreLocked` when another process owns the embedded store. A server is first
    spoken to when a collection is opened: that raises `StoreUnavailable`.
    """
    # Imported here, so that one engine works where the other is not installed.
    if settings.qdrant_host:
        from rag.store.server.store import ServerStore

        return ServerStore.connect(settings)
    from rag.store.edge.store import EdgeStore

    return EdgeStore(settings.qdrant_path)


def missing(name: str) -> CollectionNotFound:
    """Return the error for a collection that is not there."""
    return CollectionNotFound(
        f"there is no collection {name!r}: nothing was indexed in it yet "
        "(vision-rag index FOLDER does)"
    )


def is_published(name: str, generation: str) -> InvalidSearch:
    """Return the error for a generation that may not be dropped."""
    return InvalidSearch(
        f"the generation {generation!r} of the collection {name!r} is published: publish another "
        "one first"
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
    return f"`vision-rag reindex --collection {name}` fills it anew from the pictures' files"


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
            "that: index the pictures into another collection (--collection)"
        ) from None
    return identity


def check_name(name: str) -> None:
    """Raise `InvalidSearch` unless `name` can name a collection (and a folder)."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or "--" in name:
        raise InvalidSearch(
            f"the collection name {name[:80]!r} is not allowed: use 1 to 64 of the characters "
            "A-Z, a-z, 0-9, _ and -, without two - in a row"
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
            check_payload(point.payload, id),
        )
    return list(checked.values())


def check_query(top_k: int, offset: int, score_threshold: float | None) -> None:
    """Raise `InvalidSearch` for a number of results or a threshold that cannot be used."""
    if top_k < 1 or offset < 0 or top_k + offset > MAX_DEPTH:
        raise InvalidSearch(
            f"top_k is {top_k} and offset {offset}; allowed are top_k from 1, offset from 0, and "
            f"{MAX_DEPTH} for both together"
        )
    if score_threshold is not None and not math.isfinite(score_threshold):
        raise InvalidSearch(f"score_threshold is {score_threshold}; it must be finite")


def check_scroll(limit: int, start: str | None) -> str | None:
    """Return where to start as `check_id` gives it. Raises `InvalidSearch`, also for the limit."""
    if not 1 <= limit <= MAX_DEPTH:
        raise InvalidSearch(f"limit is {limit}; allowed are 1 to {MAX_DEPTH}")
    return None if start is None else check_id(start)


def check_payload(payload: Payload, id: str) -> Payload:
    """Return a payload as JSON gives it back. Raises `InvalidSearch` for what cannot be kept."""
    try:
        text = json.dumps(payload, allow_nan=False, ensure_ascii=False)
        text.encode()  # a lone surrogate is found here
        plain: Payload = json.loads(text, parse_int=_int64)
        if (levels := _levels(plain)) > MAX_LEVELS:
            raise ValueError(f"it is nested {levels} levels deep; allowed are {MAX_LEVELS}")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSearch(f"the payload of point {id} cannot be kept as JSON: {error}") from None
    return plain


def _levels(value: Any) -> int:
    """Return how deep objects and lists lie in each other: 0 for a number, 1 for `[1]`."""
    if not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_levels, inner), default=0)


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
