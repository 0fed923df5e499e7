"""The backend of `--local`, in this process: the only module of rag that imports the encoder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from bento.contract.embedding import base64_bytes
from bento.contract.errors import InvalidSearch
from bento.contract.images import IndexedImage, Outcome
from bento.contract.search import ImageExample, SearchRequest, SearchResponse
from rag.indexing.failures import IndexingError
from rag.pictures.identity import Described, identity_of
from rag.pictures.index import Picture, PictureIndex
from rag.search.searcher import Searcher
from rag.settings import RagSettings
from rag.store.interface import Store, Vector
from rag.store.opening import open_store

R = TypeVar("R")


def open_local() -> LocalBackend:
    """Open the store and load the model of MODEL_NAME and MODEL_PRETRAINED.

    Raises `IndexingError` without torch, or if `.env` would redirect the key of the Qdrant server;
    and the errors of opening the store and loading the model.
    """
    if find_spec("torch") is None:
        raise IndexingError(
            "--local runs the model in this process and needs torch, which is not installed: "
            "run pip install 'vision-encoder[service]', or omit --local to use a service",
            "torch_missing",
        )
    from bento.encoder.model import Encoder
    from bento.settings import Settings

    settings = RagSettings()
    try:
        settings.check_sources()
    except ValueError as error:
        raise IndexingError(str(error), "mixed_sources") from None
    store = open_store(settings)  # before the model: a locked store fails at once
    return LocalBackend(Encoder.load(Settings()), store)


class LocalEncoder(Described, Protocol):
    """The encoder that `LocalBackend` needs; `bento.Encoder` is one."""

    @property
    def image_batch(self) -> int:
        """The number of pictures to embed in one call when several calls run concurrently."""

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return normalized embeddings, float32 (n, dim)."""

    def encode_images(self, images: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return normalized embeddings of picture files' bytes, float32 (n, dim)."""


class LocalBackend(PictureIndex):
    """Indexes and searches with an encoder and a store in this process."""

    def __init__(self, encoder: LocalEncoder, store: Store) -> None:
        super().__init__(store, identity_of(encoder))
        self.batch = encoder.image_batch
        self.workers = 3 * self.batch  # one batch computes, one waits, one is read or written
        self._encoder = encoder
        model = f"{encoder.model_name}/{encoder.pretrained}"
        self._searcher = Searcher(self, _Embedder(encoder), _example_bytes, RagSettings(), model)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embed", daemon=True)
        self._thread.start()

    def index(
        self, pictures: Sequence[Picture], collection: str, *, staged: bool = False
    ) -> list[Outcome]:
        outcomes = self.refresh(pictures, collection, staged=staged)
        new = [picture for picture, done in zip(pictures, outcomes, strict=True) if done is None]
        if new:
            vectors = self._encoder.encode_images([picture.data for picture in new])
            self.add(new, vectors, collection, staged=staged)
        return [done or "indexed" for done in outcomes]

    def search(self, request: SearchRequest) -> SearchResponse:
        searching = self._searcher.search(request)
        return asyncio.run_coroutine_threadsafe(searching, self._loop).result()

    def images(
        self, collection: str, *, dao_id: str | None = None, generation: str | None = None
    ) -> Iterator[IndexedImage]:
        start: str | None = None
        while True:
            page, start = self.page(collection, dao_id=dao_id, generation=generation, start=start)
            yield from page
            if start is None:
                return

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
        self._store.close()


class _Embedder:
    """Adapts an encoder to the calls of a search."""

    def __init__(self, encoder: LocalEncoder) -> None:
        self._encoder = encoder

    # `normalize` is unused because an encoder always normalizes.
    async def embed_text(self, text: str, *, normalize: bool) -> Vector:  # noqa: ARG002
        return np.asarray((await asyncio.to_thread(self._encoder.encode_texts, [text]))[0])

    async def embed_image(self, data: bytes, *, normalize: bool) -> Vector:  # noqa: ARG002
        return np.asarray((await asyncio.to_thread(self._encoder.encode_images, [data]))[0])


async def _example_bytes(example: ImageExample) -> bytes:
    if example.image_base64 is None:
        raise InvalidSearch(
            "only a service can search by a URL: download the picture and pass the file"
        )
    return base64_bytes(example.image_base64)
