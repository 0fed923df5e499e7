"""Pictures in a collection: their ids and payloads, indexing, listing and deletion.

The caller computes the embeddings.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from threading import Condition
from typing import Any, Final

from bento.contract.errors import CollectionNotFound, ImageNotFound, InvalidSearch
from bento.contract.filters import tenant
from bento.contract.images import (
    DEFAULT_DAO_ID,
    IndexedImage,
    Outcome,
    PublishResponse,
    StatsResponse,
)
from bento.contract.limits import MAX_LISTED, MAX_PAGE_BYTES
from rag.pictures.sizes import PageSize
from rag.store.checks import check_payload, missing
from rag.store.interface import Collection, ModelIdentity, Payload, Point, Record, Store, Vector

_NAMESPACE: Final = uuid.UUID("6f0c5f0e-3d0b-5f7c-9a52-1c3f6f1f3b6d")
_OURS: Final = frozenset(
    {"dao_id", "image_id", "image_path", "duplicates", "content_hash", "indexed_at"}
)


@dataclass(frozen=True)
class Picture:
    """A picture to index: the file's bytes, its paths and its metadata."""

    image_id: str
    data: bytes
    image_path: str
    dao_id: str
    metadata: Mapping[str, Any]
    duplicates: Sequence[str] = ()  # other paths of the same picture

    @cached_property
    def content_hash(self) -> str:
        """The SHA-256 of the file's bytes, in hex."""
        return sha256(self.data).hexdigest()

    def payload(self) -> Payload:
        """Return the payload without `indexed_at`.

        Raises `InvalidSearch` when `metadata` uses a reserved name.
        """
        _check_metadata(self.metadata)
        return {
            **self.metadata,
            "dao_id": self.dao_id,
            "image_id": self.image_id,
            "image_path": self.image_path,
            **({"duplicates": list(self.duplicates)} if self.duplicates else {}),
            "content_hash": self.content_hash,
        }


def point_id(dao_id: str, image_id: str) -> str:
    """Return the UUIDv5 of a tenant's picture. Indexing it again replaces the same point."""
    return str(uuid.uuid5(_NAMESPACE, f"{len(dao_id)}:{dao_id}{image_id}"))


def metadata_of(payload: Payload) -> Payload:
    """Return a payload without the fields that the index sets."""
    return {key: value for key, value in payload.items() if key not in _OURS}


class PictureIndex:
    """The pictures in a store, for one model. Synchronous and thread-safe."""

    def __init__(self, store: Store, identity: ModelIdentity) -> None:
        self._store = store
        self._identity = identity
        self._written: set[str] = set()  # the points that `_locked` protects
        self._free = Condition()

    def open(self, collection: str, *, create: bool = False, staged: bool = False) -> Collection:
        """Open a collection for this model. Raises `CollectionMismatch`."""
        return self._store.open(collection, self._identity, create=create, staged=staged)

    def refresh(
        self, pictures: Sequence[Picture], collection: str, *, staged: bool = False
    ) -> list[Outcome | None]:
        """Update the payloads of pictures whose content is indexed, and return an outcome each.

        `None` means that the picture is new or its content changed: embed it and add it. Raises
        `InvalidSearch` for a payload that cannot be stored.
        """
        wanted = {}
        for picture in pictures:
            point = _point_of(picture)
            wanted[point] = check_payload(picture.payload(), point)
        held = self.open(collection, create=True, staged=staged)
        outcomes: dict[str, Outcome] = {}
        with self._locked(wanted):
            for point, record in held.retrieve(list(wanted)).items():
                payload = wanted[point]
                if record.payload.get("content_hash") == payload["content_hash"]:
                    same = {**record.payload, "indexed_at": None} == {**payload, "indexed_at": None}
                    outcomes[point] = "unchanged" if same else "updated"
            changed = [point for point, outcome in outcomes.items() if outcome == "updated"]
            if changed:
                held.overwrite_payloads({p: {**wanted[p], "indexed_at": _now()} for p in changed})
        return [outcomes.get(_point_of(picture)) for picture in pictures]

    def add(
        self,
        pictures: Sequence[Picture],
        vectors: Sequence[Vector] | Vector,
        collection: str,
        *,
        staged: bool = False,
    ) -> None:
        """Store pictures with their embeddings, float32 (n, dimension), replacing older ones."""
        points = [
            Point(_point_of(picture), vector, {**picture.payload(), "indexed_at": _now()})
            for picture, vector in zip(pictures, vectors, strict=True)
        ]
        held = self.open(collection, create=True, staged=staged)
        with self._locked(point.id for point in points):
            held.upsert(points)

    def update(
        self,
        image_id: str,
        dao_id: str,
        collection: str,
        *,
        paths: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Replace a picture's paths or metadata without embedding it.

        Return False if there is no such picture. Raises `InvalidSearch` when `metadata` uses a
        reserved name.
        """
        point = point_id(dao_id, image_id)
        if metadata is not None:
            _check_metadata(metadata)
        held = self.open(collection)
        with self._locked([point]):
            record = held.retrieve([point]).get(point)
            if record is None:
                return False
            payload = {**record.payload, "indexed_at": _now()}
            if metadata is not None:
                payload = {**metadata, **{key: payload[key] for key in _OURS & payload.keys()}}
            if paths is not None:
                payload |= {"image_path": paths[0] if paths else "", "duplicates": list(paths[1:])}
                if not paths[1:]:
                    del payload["duplicates"]
            return held.overwrite_payloads({point: payload}) > 0

    def delete(self, image_id: str, dao_id: str, collection: str, *, staged: bool = False) -> bool:
        """Delete a picture; return False if there is none."""
        held = self.open(collection, staged=staged)
        return held.delete([point_id(dao_id, image_id)]) > 0

    def record(
        self, image_id: str, dao_id: str, collection: str, *, with_vector: bool = False
    ) -> Record:
        """Return the stored point of a picture. Raises `ImageNotFound`."""
        point = point_id(dao_id, image_id)
        held = self.open(collection).retrieve([point], with_vectors=with_vector)
        if point not in held:
            raise ImageNotFound(
                f"the collection {collection!r} has no picture {image_id!r} with dao_id {dao_id!r}"
            )
        return held[point]

    def page(
        self,
        collection: str,
        *,
        generation: str | None = None,
        dao_id: str | None = None,
        limit: int = MAX_LISTED,
        start: str | None = None,
    ) -> tuple[list[IndexedImage], str | None]:
        """List pictures, whichever model embedded them, and return the next page's `start`.

        `generation` names the version to list; None means the published one. A page has fewer than
        `limit` pictures if their payloads would exceed `MAX_PAGE_BYTES`.
        """
        held = self._generation(collection, generation)
        tenants = None if dao_id is None else tenant(dao_id)
        images: list[IndexedImage] = []
        size = PageSize(MAX_PAGE_BYTES)
        while True:
            step = size.step(limit - len(images))
            records, start = held.scroll(filter=tenants, limit=step, start=start)
            for record in records:
                if not size.fits(record.payload):
                    return images, record.id
                images.append(_image(record))
            if start is None or len(images) == limit:
                return images, start

    def stats(self, collection: str) -> StatsResponse:
        """Count the pictures of a collection, whichever model filled it."""
        published = self._generation(collection, None)
        identity = published.identity
        points = {
            held.identity.generation: held.count() for held in self._store.generations(collection)
        }
        return StatsResponse(
            collection=collection,
            points=points.get(identity.generation, 0),
            model=f"{identity.model_name}/{identity.pretrained}",
            dimension=identity.dimension,
            generation=identity.generation,
            generations=points,
            serving=self._identity.generation,
        )

    def publish(self, collection: str) -> PublishResponse:
        """Publish the version of this model atomically.

        If the published version is empty, this model's version need not exist.
        """
        before = self._store.published(collection)
        if before and not before.count():
            # Reindexing an empty collection adds no picture, so it has not created the version.
            self.open(collection, create=True, staged=True)
        self._store.publish(collection, self._identity)
        replaced = before.identity.generation if before else None
        mine = self._identity.generation
        return PublishResponse(
            collection=collection, generation=mine, replaced=replaced if replaced != mine else None
        )

    def drop(self, collection: str, generation: str) -> bool:
        """Delete an unpublished version; return False if there is no version of that name."""
        return self._store.drop(collection, generation)

    @contextmanager
    def _locked(self, points: Iterable[str]) -> Iterator[None]:
        """Lock these points against other threads, so that payload and vector stay consistent."""
        mine = set(points)
        with self._free:
            self._free.wait_for(lambda: self._written.isdisjoint(mine))
            self._written |= mine
        try:
            yield
        finally:
            with self._free:
                self._written -= mine
                self._free.notify_all()

    def _generation(self, collection: str, generation: str | None) -> Collection:
        if generation is None:
            published = self._store.published(collection)
            if published is None:
                raise missing(collection)
            return published
        for held in self._store.generations(collection):
            if held.identity.generation == generation:
                return held
        raise CollectionNotFound(f"the collection {collection!r} has no version {generation!r}")


def _point_of(picture: Picture) -> str:
    return point_id(picture.dao_id, picture.image_id)


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    if taken := sorted(_OURS & metadata.keys()):
        raise InvalidSearch(
            f"metadata must not contain {', '.join(taken)}: the index sets these fields itself"
        )


def _image(record: Record) -> IndexedImage:
    payload = record.payload
    return IndexedImage(
        id=str(payload.get("image_id", record.id)),
        dao_id=str(payload.get("dao_id", DEFAULT_DAO_ID)),
        path=str(payload.get("image_path", "")),
        payload=payload,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()
