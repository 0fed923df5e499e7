"""Checks and errors that both engines share."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, Final
from uuid import UUID

import numpy as np

from bento.contract.errors import CollectionMismatch, CollectionNotFound, InvalidSearch
from bento.contract.limits import MAX_DEPTH, MAX_PAYLOAD_BYTES
from rag.store.interface import ModelIdentity, Payload, Point, Vector

# The limit on nested objects and lists in a payload. The embedded engine writes about 127 levels,
# but then cannot read them, or the points stored beside them. A Qdrant server accepts about 30.
MAX_LEVELS: Final = 20


def missing(name: str) -> CollectionNotFound:
    """Return the error for a collection that does not exist."""
    return CollectionNotFound(
        f"there is no collection {name!r}. To create it, index pictures with `vision-rag index "
        f"FOLDER --collection {name}`"
    )


def is_published(name: str, generation: str) -> InvalidSearch:
    """Return the error for dropping the published version."""
    return InvalidSearch(
        f"version {generation!r} of the collection {name!r} is published and cannot be dropped: "
        "publish another version first"
    )


def check_identity(name: str, held: ModelIdentity, wanted: ModelIdentity) -> None:
    """Raise `CollectionMismatch` unless the collection holds the wanted model's vectors."""
    if held == wanted:
        return
    differences = "; ".join(
        f"{f.name}: {getattr(held, f.name)} in the collection, {getattr(wanted, f.name)} here"
        for f in fields(held)
        if getattr(held, f.name) != getattr(wanted, f.name)
    )
    raise CollectionMismatch(
        f"the collection {name!r} holds vectors of {_describe(held)}, but this encoder is "
        f"{_describe(wanted)}. Their vectors are not comparable ({differences}). To rebuild the "
        f"collection from the image files, run `vision-rag reindex --collection {name}`"
    )


def identity_to_json(identity: ModelIdentity) -> dict[str, Any]:
    """Return the identity in the form that both engines store with a collection."""
    return asdict(identity)


def identity_from_json(name: str, data: Any) -> ModelIdentity:
    """Return the identity that `identity_to_json` wrote.

    Raises `CollectionMismatch` when a field is missing: another program made the collection, so
    the meaning of its vectors is unknown.
    """
    try:
        return ModelIdentity(**{f.name: data[f.name] for f in fields(ModelIdentity)})
    except (KeyError, TypeError):
        raise CollectionMismatch(
            f"the collection {name!r} does not record which model made its vectors. Another "
            "program created it, or the Qdrant server is older than 1.16. Upgrade the server, or "
            "index into another collection (--collection)"
        ) from None


def check_name(name: str) -> None:
    """Raise `InvalidSearch` unless a collection, and its folder, can have this name."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or "--" in name:
        raise InvalidSearch(
            f"the collection name {name[:80]!r} is not allowed: use 1 to 64 of the characters "
            "A-Z, a-z, 0-9, _ and -, without two consecutive hyphens"
        )


def check_id(id: str) -> str:
    """Return a UUID in lower case with hyphens, as Qdrant writes it, or raise `InvalidSearch`."""
    try:
        return str(UUID(id))
    except (ValueError, TypeError, AttributeError):
        raise InvalidSearch(f"the id {str(id)[:80]!r} is not a UUID") from None


def check_vector(vector: Vector, dimension: int, what: str) -> Vector:
    """Return the vector as float32 (dimension,) of length 1.

    Qdrant accepts NaN, does not normalize vectors shorter than 0.0003, and turns vectors longer
    than 1e19 into zeros. So this function normalizes them itself, in float64.
    Raises `InvalidSearch`; its message starts with `what`, the name of the vector.
    """
    try:
        given = np.asarray(vector, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidSearch(f"{what} must be a list of {dimension} numbers") from None
    if given.shape != (dimension,):
        raise InvalidSearch(
            f"{what} has the shape {given.shape}, but the collection needs ({dimension},)"
        )
    if not np.isfinite(given).all():
        raise InvalidSearch(f"{what} contains NaN or infinity: use finite numbers only")
    largest = np.abs(given).max()
    if largest == 0:
        raise InvalidSearch(f"{what} is all zeros, so it has no cosine similarity")
    scaled = given / largest  # so that no square overflows or vanishes
    unit: Vector = (scaled / np.linalg.norm(scaled)).astype(np.float32)
    return unit


def check_points(points: Sequence[Point], dimension: int) -> list[Point]:
    """Return the points in the form that both engines can write.

    If several points have the same id, only the last one is returned. Raises `InvalidSearch` for
    the first id, vector or payload that cannot be stored.
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
    """Raise `InvalidSearch` for a `top_k`, `offset` or threshold out of range."""
    if top_k < 1 or offset < 0 or top_k + offset > MAX_DEPTH:
        raise InvalidSearch(
            f"top_k is {top_k} and offset {offset}, but top_k must be at least 1, offset at least "
            f"0, and their sum at most {MAX_DEPTH}"
        )
    if score_threshold is not None and not math.isfinite(score_threshold):
        raise InvalidSearch(f"score_threshold is {score_threshold}, but it must be finite")


def check_scroll(limit: int, start: str | None) -> str | None:
    """Return `start` in the form of `check_id`. Raises `InvalidSearch`, also for a bad limit."""
    if not 1 <= limit <= MAX_DEPTH:
        raise InvalidSearch(f"limit is {limit}, but it must be from 1 to {MAX_DEPTH}")
    return None if start is None else check_id(start)


def check_payload(payload: Payload, id: str) -> Payload:
    """Return a payload after a round trip through JSON. Raises `InvalidSearch` if that fails."""
    try:
        text = json.dumps(payload, allow_nan=False, ensure_ascii=False)
        if (count := len(text.encode())) > MAX_PAYLOAD_BYTES:  # fails for a lone surrogate
            raise ValueError(f"it has {count:,} bytes; at most {MAX_PAYLOAD_BYTES:,} are allowed")
        plain: Payload = json.loads(text, parse_int=_int64)
        if (levels := _levels(plain)) > MAX_LEVELS:
            raise ValueError(f"it is nested {levels} levels deep, more than {MAX_LEVELS}")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSearch(
            f"the payload of point {id} cannot be stored as JSON: {error}"
        ) from None
    return plain


def _levels(value: Any) -> int:
    """Return the depth of nested objects and lists: 0 for a number, 1 for `[1]`."""
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
