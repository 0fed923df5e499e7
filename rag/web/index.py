"""The operations behind the index routes: index, update, delete, list, publish, thumbnails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bento.contract.embedding import ImageGiven
from bento.contract.errors import InvalidSearch
from bento.contract.images import (
    DeleteResponse,
    DropResponse,
    IndexRequest,
    IndexResponse,
    ListResponse,
    PublishResponse,
    StatsResponse,
    UpdateRequest,
    UpdateResponse,
)
from bento.contract.limits import MAX_LISTED
from rag.pictures.index import Picture, PictureIndex, point_id
from rag.search.query import Embedder
from rag.search.work import Work
from rag.settings import RagSettings
from rag.web.thumbnails import Thumbnails


class Index:
    """Answer the index routes.

    `image_bytes` returns the bytes that a request contains or points to. `work` runs the calls of
    the store. The methods raise a `RagError`, and the errors of `embedder`, `image_bytes` and
    `work`.
    """

    def __init__(
        self,
        pictures: PictureIndex,
        embedder: Embedder,
        image_bytes: Callable[[ImageGiven], Awaitable[bytes]],
        thumbnails: Thumbnails,
        settings: RagSettings,
        work: Work,
    ) -> None:
        self._pictures = pictures
        self._embedder = embedder
        self._image_bytes = image_bytes
        self._thumbnails = thumbnails
        self._collection = settings.image_search_collection
        self._work = work

    async def index(self, request: IndexRequest) -> IndexResponse:
        collection = request.collection or self._collection
        picture = Picture(
            request.id,
            await self._image_bytes(request),
            request.image_path,
            request.dao_id,
            request.metadata,
            request.duplicates,
        )
        (outcome,) = await self._work(
            self._pictures.refresh, [picture], collection, staged=request.staged
        )
        if outcome is None:
            vector = await self._embedder.embed_image(picture.data, normalize=True)
            await self._work(
                self._pictures.add, [picture], [vector], collection, staged=request.staged
            )
            outcome = "indexed"
        await self._thumbnails.keep(picture, collection)
        return IndexResponse(
            id=request.id, dao_id=request.dao_id, collection=collection, outcome=outcome
        )

    async def delete(
        self, image_id: str, dao_id: str, collection: str | None, *, staged: bool
    ) -> DeleteResponse:
        name = collection or self._collection
        deleted = await self._work(self._pictures.delete, image_id, dao_id, name, staged=staged)
        if deleted and not staged:
            await self._work(self._thumbnails.forget, name, point_id(dao_id, image_id))
        return DeleteResponse(id=image_id, dao_id=dao_id, deleted=deleted)

    async def update(
        self, image_id: str, dao_id: str, collection: str | None, request: UpdateRequest
    ) -> UpdateResponse:
        updated = await self._work(
            self._pictures.update,
            image_id,
            dao_id,
            collection or self._collection,
            paths=request.paths,
            metadata=request.metadata,
        )
        return UpdateResponse(id=image_id, dao_id=dao_id, updated=updated)

    async def page(
        self,
        collection: str,
        *,
        generation: str | None,
        dao_id: str | None,
        limit: int,
        start: str | None,
    ) -> ListResponse:
        if not 1 <= limit <= MAX_LISTED:
            raise InvalidSearch(f"limit is {limit}; it must be 1 to {MAX_LISTED}")
        images, following = await self._work(
            self._pictures.page,
            collection,
            generation=generation,
            dao_id=dao_id,
            limit=limit,
            start=start,
        )
        return ListResponse(images=images, next=following)

    async def stats(self, collection: str) -> StatsResponse:
        return await self._work(self._pictures.stats, collection)

    async def publish(self, collection: str) -> PublishResponse:
        return await self._work(self._pictures.publish, collection)

    async def drop(self, collection: str, generation: str) -> DropResponse:
        dropped = await self._work(self._pictures.drop, collection, generation)
        return DropResponse(collection=collection, generation=generation, dropped=dropped)

    async def thumbnail(
        self, image_id: str, dao_id: str, collection: str | None
    ) -> tuple[bytes, str]:
        """Return a picture's thumbnail, a JPEG file, and the content hash of the picture."""
        name = collection or self._collection
        record = await self._work(self._pictures.record, image_id, dao_id, name)
        data = await self._thumbnails.of(name, record)
        return data, str(record.payload.get("content_hash"))
