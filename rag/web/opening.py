"""Image search in the service, which opens it once, when the encoder is loaded."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from threading import Event, Thread
from typing import NamedTuple, Protocol

from starlette.responses import JSONResponse, Response

from bento.contract.embedding import ImageGiven
from bento.contract.errors import RagError, SearchDisabled
from bento.contract.search import SearchRequest, SearchResponse, degraded
from rag.pictures.identity import Described, identity_of
from rag.pictures.index import PictureIndex
from rag.search.query import Embedder
from rag.search.searcher import Searcher
from rag.search.work import Work
from rag.settings import RagSettings
from rag.store.interface import Store
from rag.store.opening import open_store
from rag.web.index import Index
from rag.web.observed import StoreObserver, observed, watch
from rag.web.thumbnails import Decoder, Thumbnails

logger = logging.getLogger("vision_encoder")


class Encoder(Described, Decoder, Protocol):
    """The part of `bento.Encoder` that image search needs."""


class Threads(NamedTuple):
    """The threads that the service lends to image search, for each kind of work."""

    store: Work
    thumbnails: Work
    large: Work  # one thread, which decodes large pictures


@dataclass(frozen=True)
class _Parts:
    store: Store
    index: Index
    searcher: Searcher
    closed: Event


class ImageSearch:
    """The index and the searcher behind the routes of image search.

    When search is turned off, `collection` is None and the other members raise `SearchDisabled`.
    """

    def __init__(self, collection: str | None, parts: _Parts | None) -> None:
        self.collection = collection
        self._parts = parts

    @property
    def index(self) -> Index:
        return self._enabled.index

    @property
    def searcher(self) -> Searcher:
        return self._enabled.searcher

    async def answer(self, request: SearchRequest) -> SearchResponse | Response:
        """Answer a search. If search is unavailable, the answer says why (`success` is false).

        Raises a `RagError` of status 400 for an invalid request, and errors of embedding.
        """
        try:
            return await self.searcher.search(request)
        except RagError as error:
            if error.status == 400:  # the request is invalid; search itself works
                raise
            return JSONResponse(degraded(error, request.language).model_dump(), error.status)

    @classmethod
    def open(
        cls,
        settings: RagSettings,
        encoder: Encoder,
        embedder: Embedder,
        image_bytes: Callable[[ImageGiven], Awaitable[bytes]],
        observer: StoreObserver,
        threads: Threads,
    ) -> ImageSearch:
        """Open the store and the encoder's collection, if search is turned on.

        `image_bytes` returns the bytes that a request contains or points to. `observer` receives
        the state of the store. If the collection is unusable, only log it, because embedding still
        works. Raises `StoreLocked` and `StoreUnavailable`.
        """
        if not settings.qdrant_enabled:
            return cls(None, None)
        collection = settings.image_search_collection
        store = observed(open_store(settings), observer)
        pictures = PictureIndex(store, identity_of(encoder))
        try:
            pictures.open(collection, create=True)
        except RagError as error:
            logger.warning("search is degraded: %s", error)
        previews = Thumbnails(
            settings.thumbnails_path,
            settings.files_folders,
            encoder,
            threads.thumbnails,
            threads.large,
        )
        index = Index(pictures, embedder, image_bytes, previews, settings, threads.store)
        model = f"{encoder.model_name}/{encoder.pretrained}"
        searcher = Searcher(pictures, embedder, image_bytes, settings, model, threads.store)
        closed = Event()
        folder = None if settings.qdrant_host else settings.qdrant_path
        given = (pictures, collection, folder, observer, closed)
        Thread(target=watch, args=given, name="watch-store", daemon=True).start()
        return cls(collection, _Parts(store, index, searcher, closed))

    def close(self) -> None:
        """Flush pending writes and release the store."""
        if self._parts:
            self._parts.closed.set()
            self._parts.store.close()

    @property
    def _enabled(self) -> _Parts:
        if self._parts is None:
            raise SearchDisabled(
                "search is turned off; to turn it on, start the service with QDRANT_ENABLED=true"
            )
        return self._parts
