"""Where pictures are indexed and searched: the interface, and a running service behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from bento.contract.errors import VisionError
from bento.contract.images import IndexedImage, Outcome, PublishResponse, StatsResponse
from bento.contract.search import SearchRequest, SearchResponse
from rag.pictures.index import Picture
from router_client import VisionEncoderClient


class Backend(Protocol):
    """Where pictures are indexed and searched. Calls are synchronous and thread-safe.

    A call of `index` is fastest with `batch` pictures; `workers` pictures at a time keep the
    backend busy. Errors are `VisionError`s. A call with `staged` uses the version of this
    backend's model, published or not.
    """

    batch: int
    workers: int

    def index(
        self, pictures: Sequence[Picture], collection: str, *, staged: bool = False
    ) -> list[Outcome]:
        """Index pictures, without embedding those that the collection holds already.

        Raises the error of one of them; some of the others may be indexed then.
        """

    def delete(self, image_id: str, dao_id: str, collection: str, *, staged: bool = False) -> bool:
        """Forget a picture; return False if there is none."""

    def update(
        self,
        image_id: str,
        dao_id: str,
        collection: str,
        *,
        paths: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Replace a picture's paths or metadata; return False if there is none."""

    def search(self, request: SearchRequest) -> SearchResponse:
        """Find pictures, best first."""

    def images(
        self, collection: str, *, dao_id: str | None = None, generation: str | None = None
    ) -> Iterator[IndexedImage]:
        """List pictures in the order of their points' ids, whichever model embedded them."""

    def stats(self, collection: str) -> StatsResponse:
        """Return what a collection holds."""

    def publish(self, collection: str) -> PublishResponse:
        """Publish the version of this backend's model."""

    def drop(self, collection: str, generation: str) -> bool:
        """Delete an unpublished version; return False if there is none of that name."""

    def close(self) -> None:
        """Release connections, or the store."""


class RemoteBackend:
    """Goes through the HTTP routes of a running service."""

    batch = 1  # the service itself batches the pictures of several requests
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
    """Return the pictures of a collection; none if there is no such collection or version."""
    try:
        return list(backend.images(collection, dao_id=dao_id, generation=generation))
    except VisionError as error:
        if error.code != "collection_not_found":
            raise
        return []
