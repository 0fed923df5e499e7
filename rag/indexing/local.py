"""A backend in this process, for `--local`: the only module of rag that imports the encoder."""

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
from rag.pictures.identity import Described, identity_of
from rag.pictures.index import Picture, PictureIndex
from rag.search.searcher import Searcher
from rag.settings import RagSettings
from rag.store.interface import Store, Vector
from rag.store.opening import open_store

R = TypeVar("R")


def open_local() -> LocalBackend:
    """Open the store, load the model of MODEL_NAME and MODEL_PRETRAINED, and use them here.

    Raises `InvalidSearch` without torch, and the errors of opening the store and loading the model.
    """
    if find_spec("torch") is None:
        raise InvalidSearch(
            "--local runs the model in this process, and torch is not installed: "
            "pip install 'vision-encoder[service]', or leave --local out and ask a service"
        )
    from bento.encoder.model import Encoder
    from bento.settings import Settings

    store = open_store(RagSettings())  # first: it fails at once when another process owns it
    return LocalBackend(Encoder.load(Settings()), store)


class LocalEncoder(Described, Protocol):
    """What `LocalBackend` needs of an encoder; `bento.Encoder` has it."""

    @property
    def image_batch(self) -> int:
        """How many pictures to embed in one call, when there are several calls at a time."""

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return normalised embeddings, float32 (n, dim)."""

    def encode_images(self, images: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return normalised embeddings of picture files' bytes, float32 (n, dim)."""


class LocalBackend(PictureIndex):
    """An encoder and a store in this process."""

    def __init__(self, encoder: LocalEncoder, store: Store) -> None:
        super().__init__(store, identity_of(encoder))
        self.batch = encoder.image_batch
        self.workers = 3 * self.batch  # one batch is computed, one waits, one is read or written
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
    """An encoder with the calls that a search makes."""

    def __init__(self, encoder: LocalEncoder) -> None:
        self._encoder = encoder

    async def embed_text(self, text: str, *, normalize: bool) -> Vector:
        return np.asarray((await asyncio.to_thread(self._encoder.encode_texts, [text]))[0])

    async def embed_image(self, data: bytes, *, normalize: bool) -> Vector:
        return np.asarray((await asyncio.to_thread(self._encoder.encode_images, [data]))[0])


async def _example_bytes(example: ImageExample) -> bytes:
    if example.image_base64 is None:
        raise InvalidSearch("only a service can search by a URL: read the file")
    return base64_bytes(example.image_base64)
