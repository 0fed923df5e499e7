"""Pictures in a collection: their ids and payloads, indexing, search and deletion.

Works on vectors; whoever calls it brings the embeddings.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from typing import Any, Final

from rag.errors import InvalidSearch
from rag.store import Collection, ModelIdentity, Payload, Point, Store, Vector, missing

DEFAULT_DAO_ID: Final = "default"
_NAMESPACE: Final = uuid.UUID("6f0c5f0e-3d0b-5f7c-9a52-1c3f6f1f3b6d")
_OURS: Final = frozenset({"dao_id", "image_id", "image_path", "content_hash", "indexed_at"})


@dataclass(frozen=True)
class Hit:
    """A picture found; `score` is the cosine similarity, best 1."""

    id: str
    score: float
    path: str
    payload: Payload


@dataclass(frozen=True)
class Stats:
    """What a collection holds; `model` as NAME/PRETRAINED."""

    collection: str
    points: int
    model: str
    dimension: int


@dataclass(frozen=True)
class Picture:
    """A picture to index: the file's bytes and what is known about it."""

    image_id: str
    data: bytes
    image_path: str
    dao_id: str
    metadata: Mapping[str, Any]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the file's bytes, in hex; asked for before and after embedding."""
        return sha256(self.data).hexdigest()

    def payload(self) -> Payload:
        """Return what is stored with the vector, but for the time of indexing.

        Raises `InvalidSearch` when `metadata` uses a name of ours.
        """
        if taken := sorted(_OURS & self.metadata.keys()):
            raise InvalidSearch(
                f"metadata may not contain {', '.join(taken)}: these are set by the index"
            )
        return {
            **self.metadata,
            "dao_id": self.dao_id,
            "image_id": self.image_id,
            "image_path": self.image_path,
            "content_hash": self.content_hash,
        }


def point_id(dao_id: str, image_id: str) -> str:
    """Return the UUIDv5 of a tenant's image: the same picture always lands on one point."""
    return str(uuid.uuid5(_NAMESPACE, f"{len(dao_id)}:{dao_id}{image_id}"))


class PictureIndex:
    """The pictures of a store, as one model sees them. Synchronous and thread-safe."""

    def __init__(self, store: Store, identity: ModelIdentity) -> None:
        self._store = store
        self._identity = identity

    def open(self, collection: str) -> Collection:
        """Open a collection, creating it when missing. Raises `CollectionMismatch`."""
        return self._store.open(collection, self._identity)

    def holds(self, picture: Picture, collection: str) -> bool:
        """Say whether this very picture, with this payload, is indexed already."""
        wanted = picture.payload()
        point = point_id(picture.dao_id, picture.image_id)
        held = self.open(collection).retrieve([point]).get(point)
        return held is not None and {**held, "indexed_at": None} == {**wanted, "indexed_at": None}

    def add(self, picture: Picture, vector: Vector, collection: str) -> None:
        """Index a picture under its embedding, float32 (dimension,); replaces an older one."""
        payload = {**picture.payload(), "indexed_at": datetime.now(UTC).isoformat()}
        point = Point(point_id(picture.dao_id, picture.image_id), vector, payload)
        self.open(collection).upsert([point])

    def delete(self, image_id: str, dao_id: str, collection: str) -> bool:
        """Forget a picture and say whether it was there."""
        held = self._store.open(collection, self._identity, create=False)
        return held.delete([point_id(dao_id, image_id)]) > 0

    def search(
        self,
        vector: Vector,
        collection: str,
        *,
        top_k: int,
        dao_id: str | None = None,
        score_threshold: float | None = None,
    ) -> list[Hit]:
        """Return the `top_k` pictures most similar to an embedding, best first."""
        held = self._store.open(collection, self._identity, create=False)
        matches = held.query(vector, top_k, dao_id=dao_id, score_threshold=score_threshold)
        return [
            Hit(
                id=str(match.payload.get("image_id", match.id)),
                score=match.score,
                path=str(match.payload.get("image_path", "")),
                payload=match.payload,
            )
            for match in matches
        ]

    def stats(self, collection: str) -> Stats:
        """Return what a collection holds, whichever model filled it."""
        info = self._store.info(collection)
        if info is None:
            raise missing(collection)
        model = f"{info.identity.model_name}/{info.identity.pretrained}"
        return Stats(collection, info.points, model, info.identity.dimension)
