"""Backends, which index and search pictures: the interface, and one that calls a service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from bento.contract.errors import VisionError
from bento.contract.images import IndexedImage, Outcome, PublishResponse, StatsResponse
from bento.contract.search import SearchRequest, SearchResponse
from rag.pictures.index import Picture
from router_client import VisionEncoderClient


class Backend(Protocol):
    """Indexes and searches pictures. Calls block and are thread-safe. Errors are `VisionError`s.

    `index` is fastest with `batch` pictures a call, and `workers` pictures at a time keep the
    backend busy. A call with `staged` uses the version of this backend's model, even if another
    version is published.
    """

    batch: int
    workers: int

    def index(
        self, pictures: Sequence[Picture], collection: str, *, staged: bool = False
    ) -> list[Outcome]:
        """Index pictures, and embed only those that the collection does not hold yet.

        If a picture fails, raises its error. Some of the others may be indexed by then.
        """

    def delete(self, image_id: str, dao_id: str, collection: str, *, staged: bool = False) -> bool:
        """Delete a picture from the index; return False if it holds no such picture."""

    def update(
        self,
        image_id: str,
        dao_id: str,
        collection: str,
        *,
        paths: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Replace a picture's paths or metadata; return False if there is no such picture."""

    def search(self, request: SearchRequest) -> SearchResponse:
        """Find pictures, best first."""

    def images(
        self, collection: str, *, dao_id: str | None = None, generation: str | None = None
    ) -> Iterator[IndexedImage]:
        """Yield pictures in the order of their points' ids, from any model's version."""

    def stats(self, collection: str) -> StatsResponse:
        """Return the number of pictures, the model and the versions of a collection."""

    def publish(self, collection: str) -> PublishResponse:
        """Publish the version of this backend's model."""

    def drop(self, collection: str, generation: str) -> bool:
        """Delete an unpublished version; return False if there is no such version."""

    def close(self) -> None:
        """Close the connections or the store."""


class RemoteBackend:
    """Calls the HTTP routes of a running service."""

    batch = 1  # the service batches pictures across requests
    workers = 8

    def __init__(self, client: VisionEncoderClient) -> None:
        self._client = client

    def index(
        self, pictures: Sequence[Picture], collection: str, *, staged: bool = False
    ) -> list[Outcome]:
        return [
            self._client.index_image(
                picture.image_id,
                picture.data,
                dao_id=picture.dao_id,
                image_path=picture.image_path,
                duplicates=picture.duplicates,
                metadata=dict(picture.metadata),
                collection=collection,
                staged=staged,
            )
            for picture in pictures
        ]

    def delete(self, image_id: str, dao_id: str, collection: str, *, staged: bool = False) -> bool:
        return self._client.delete_image(
            image_id, dao_id=dao_id, collection=collection, staged=staged
        )

    def update(
        self,
        image_id: str,
        dao_id: str,
        collection: str,
        *,
        paths: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        return self._client.update_image(
            image_id, dao_id=dao_id, collection=collection, paths=paths, metadata=metadata
        )

    def search(self, request: SearchRequest) -> SearchResponse:
        return self._client.search(request)

    def images(
        self, collection: str, *, dao_id: str | None = None, generation: str | None = None
    ) -> Iterator[IndexedImage]:
        return self._client.images(collection, dao_id=dao_id, generation=generation)

    def stats(self, collection: str) -> StatsResponse:
        return self._client.stats(collection)

    def publish(self, collection: str) -> PublishResponse:
        return self._client.publish(collection)

    def drop(self, collection: str, generation: str) -> bool:
        return self._client.drop(collection, generation)

    def close(self) -> None:
        self._client.close()


def hold(
    backend: Backend, collection: str, dao_id: str | None = None, *, generation: str | None = None
) -> list[IndexedImage]:
    """Return the pictures of a collection; an empty list if it or the version does not exist."""
    try:
        return list(backend.images(collection, dao_id=dao_id, generation=generation))
    except VisionError as error:
        if error.code != "collection_not_found":
            raise
        return []
