"""The two ways to an index: a running service over HTTP, or a model in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from bento.contract.embedding import base64_bytes
from bento.contract.errors import InvalidSearch
from bento.contract.images import IndexedImage, Outcome, PublishResponse, StatsResponse
from bento.contract.search import ImageExample, SearchRequest, SearchResponse
from rag.pictures.identity import identity_of
from rag.pictures.index import Picture, PictureIndex
from rag.search.searcher import Searcher
from rag.settings import RagSettings
from rag.store.interface import Store, Vector
from router_client import VisionEncoderClient

R = TypeVar("R")


class Encoder(Protocol):
    """What an encoder must offer to be handed in; `bento.Encoder` does."""

    model_name: str
    pretrained: str
    weights_digest: str
    preprocess_description: str
    embedding_dim: int

    @property
    def image_batch(self) -> int:
        """How many pictures are best embedded in one call, of several at a time."""

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return normalised embeddings, float32 (n, dim)."""

    def encode_images(self, images: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return normalised embeddings of picture files' bytes, float32 (n, dim)."""


class Backend(Protocol):
    """Where pictures are indexed and searched. Calls are synchronous and thread-safe.

    It is best given `batch` pictures in one call of `index`, and kept busy by `workers` pictures
    under way. With `staged` a call means the generation of this backend's model that is being
    filled, not the published one.
    """

    batch: int
    workers: int

    def index(
        self, pictures: Sequence[Picture], collection: str, *, staged: bool = False
    ) -> list[Outcome]:
        """Index pictures; nothing is embedded of those that are there already.

        Raises what is wrong with one of them; of the others some may be indexed then.
        """

    def delete(self, image_id: str, dao_id: str, collection: str, *, staged: bool = False) -> bool:
        """Forget a picture and say whether it was there."""

    def update(
        self,
        image_id: str,
        dao_id: str,
        collection: str,
        *,
        paths: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Replace where a picture lies, or its metadata, and say whether it was there."""

    def search(self, request: SearchRequest) -> SearchResponse:
        """Find pictures, best first."""

    def images(
        self, collection: str, *, dao_id: str | None = None, generation: str | None = None
    ) -> Iterator[IndexedImage]:
        """List pictures in the order of their points' ids, whichever model made the vectors."""

    def stats(self, collection: str) -> StatsResponse:
        """Return what a collection holds."""

    def publish(self, collection: str) -> PublishResponse:
        """Make the generation of this backend's model the published one."""

    def drop(self, collection: str, generation: str) -> bool:
        """Delete a generation that is not published."""

    def close(self) -> None:
        """Release connections, or the store."""


class RemoteBackend:
    """Goes through the HTTP routes of a running service."""

    batch = 1  # the service gathers what several requests bring
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
        body = request.model_dump(exclude_unset=True, exclude_none=True)
        return SearchResponse.model_validate(self._client.search(**body))

    def images(
        self, collection: str, *, dao_id: str | None = None, generation: str | None = None
    ) -> Iterator[IndexedImage]:
        for image in self._client.images(collection, dao_id=dao_id, generation=generation):
            yield IndexedImage(**image)

    def stats(self, collection: str) -> StatsResponse:
        return StatsResponse(**self._client.stats(collection))

    def publish(self, collection: str) -> PublishResponse:
        return PublishResponse(**self._client.publish(collection))

    def drop(self, collection: str, generation: str) -> bool:
        return self._client.drop(collection, generation)

    def close(self) -> None:
        self._client.close()


class LocalBackend:
    """Runs an encoder and a store in this process."""

    def __init__(self, encoder: Encoder, store: Store) -> None:
        self.batch = encoder.image_batch
        self.workers = 3 * self.batch  # one batch is computed, one waits, one is read or written
        self._encoder = encoder
        self._store = store
        self._pictures = PictureIndex(store, identity_of(encoder))
        self._searcher = Searcher(
            self._pictures,
            _Embedder(encoder),
            _example_bytes,
            RagSettings(),
            f"{encoder.model_name}/{encoder.pretrained}",
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embed", daemon=True)
        self._thread.start()

    def index(
        self, pictures: Sequence[Picture], collection: str, *, staged: bool = False
    ) -> list[Outcome]:
        outcomes = self._pictures.refresh(pictures, collection, staged=staged)
        new = [picture for picture, done in zip(pictures, outcomes, strict=True) if done is None]
        if new:
            vectors = self._encoder.encode_images([picture.data for picture in new])
            self._pictures.add(new, vectors, collection, staged=staged)
        return [done or "indexed" for done in outcomes]

    def delete(self, image_id: str, dao_id: str, collection: str, *, staged: bool = False) -> bool:
        return self._pictures.delete(image_id, dao_id, collection, staged=staged)

    def update(
        self,
        image_id: str,
        dao_id: str,
        collection: str,
        *,
        paths: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        return self._pictures.update(image_id, dao_id, collection, paths=paths, metadata=metadata)

    def search(self, request: SearchRequest) -> SearchResponse:
        return self._run(self._searcher.search(request))

    def images(
        self, collection: str, *, dao_id: str | None = None, generation: str | None = None
    ) -> Iterator[IndexedImage]:
        start: str | None = None
        while True:
            page, start = self._pictures.page(
                collection, dao_id=dao_id, generation=generation, start=start
            )
            yield from page
            if start is None:
                return

    def stats(self, collection: str) -> StatsResponse:
        return self._pictures.stats(collection)

    def publish(self, collection: str) -> PublishResponse:
        return self._pictures.publish(collection)

    def drop(self, collection: str, generation: str) -> bool:
        return self._pictures.drop(collection, generation)

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
        self._store.close()

    def _run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class _Embedder:
    """An encoder as what a search asks for embeddings."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    async def embed_text(self, text: str, *, normalize: bool) -> Vector:
        return np.asarray((await asyncio.to_thread(self._encoder.encode_texts, [text]))[0])

    async def embed_image(self, data: bytes, *, normalize: bool) -> Vector:
        return np.asarray((await asyncio.to_thread(self._encoder.encode_images, [data]))[0])


async def _example_bytes(example: ImageExample) -> bytes:
    if example.image_base64 is None:
        raise InvalidSearch("a URL can be searched by through a service only; read the file")
    return base64_bytes(example.image_base64)
