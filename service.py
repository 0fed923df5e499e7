"""The BentoML service: resources and routes.

bentoml serve service:VisionEncoder
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from bento import Encoder, EncoderError, Settings
from bento.docs import DOCS_PAGE, complete
from bento.errors import NotReady
from bento.fetch import ImageFetcher
from bento.http import RequestMiddleware, answering, configure_logs, read_upload
from bento.images import FORMATS
from bento.model import Embeddings
from bento.runners import Runners
from bento.schemas import (
    DeleteResponse,
    EmbeddingResponse,
    HealthResponse,
    Hit,
    ImageRequest,
    ImageSource,
    IndexRequest,
    IndexResponse,
    InfoResponse,
    SearchRequest,
    SearchResponse,
    StatsResponse,
    TextRequest,
    base64_bytes,
)
from bento.version import VERSION
from rag import Picture, PictureIndex, RagError, RagSettings, identity_of
from rag.errors import SearchDisabled
from rag.pictures import DEFAULT_DAO_ID
from rag.store import Store, open_store

logger = logging.getLogger("vision_encoder")

settings = Settings()
rag_settings = RagSettings()

if settings.workers > 1 and rag_settings.qdrant_enabled and not rag_settings.qdrant_host:
    raise SystemExit(
        f"WORKERS={settings.workers} cannot share the embedded store at QDRANT_PATH, which one "
        "process owns: set QDRANT_HOST to a Qdrant server, or WORKERS=1"
    )
if settings.device.startswith("cuda:"):
    # BentoML would hide all GPUs but the first; DEVICE says which one
    os.environ.setdefault("BENTOML_DISABLE_GPU_ALLOCATION", "1")

answers_errors = answering(EncoderError, RagError)


def _service(request: Request) -> VisionEncoder:
    service: VisionEncoder = request.app.state.service
    return service


async def home(_: Request) -> Response:
    return RedirectResponse("/docs")


async def docs(_: Request) -> Response:
    return HTMLResponse(DOCS_PAGE)


async def openapi(_: Request) -> Response:
    return JSONResponse(complete(served.openapi_spec.asdict()))


@answers_errors
async def health(request: Request) -> Response:
    return JSONResponse((await _service(request).health()).model_dump())


@answers_errors
async def info(request: Request) -> Response:
    return JSONResponse(_service(request).info().model_dump())


@answers_errors
async def embed_image_upload(request: Request) -> Response:
    data, normalize = await read_upload(request)
    answer = await _service(request).embedded_image(data, normalize)
    return JSONResponse(answer.model_dump())


@answers_errors
async def delete_image(request: Request) -> Response:
    image_id, query = request.path_params["id"], request.query_params
    dao_id = query.get("dao_id", DEFAULT_DAO_ID)
    service = _service(request)
    collection = query.get("collection") or rag_settings.image_search_collection
    deleted = await asyncio.to_thread(service.pictures.delete, image_id, dao_id, collection)
    answer = DeleteResponse(id=image_id, dao_id=dao_id, deleted=deleted)
    return JSONResponse(answer.model_dump())


@answers_errors
async def collection_stats(request: Request) -> Response:
    pictures, name = _service(request).pictures, request.path_params["name"]
    answer = StatsResponse(**asdict(await asyncio.to_thread(pictures.stats, name)))
    return JSONResponse(answer.model_dump())


app = Starlette(
    routes=[
        Route("/", home),
        Route("/docs", docs),
        Route("/openapi.json", openapi),
        Route("/health", health),
        Route("/info", info),
        Route("/embed/image/upload", embed_image_upload, methods=["POST"]),
        Route("/images/{id:path}", delete_image, methods=["DELETE"]),
        Route("/collections/{name}", collection_stats),
    ]
)


@bentoml.service(
    name="vision-encoder",
    workers=settings.workers,
    resources={"gpu": 1} if settings.device.startswith("cuda") else {"cpu": "2"},
    http={"host": settings.host, "port": settings.port},
    logging={"access": {"enabled": False}},  # RequestMiddleware logs each request once
)
@bentoml.asgi_app(app)
class VisionEncoder:
    """Turns texts and images into CLIP embeddings, and finds pictures by them."""

    def __init__(self) -> None:
        configure_logs()
        self._encoder: Encoder | None = None
        self._runners: Runners | None = None
        self._pictures: PictureIndex | None = None
        self._store: Store | None = None
        self._fetcher = ImageFetcher(
            enabled=settings.allow_image_urls, max_bytes=settings.max_image_bytes
        )
        app.state.service = self
        # /livez answers while the model loads; /readyz waits for it
        threading.Thread(target=self._load, name="load", daemon=True).start()

    def _load(self) -> None:
        try:
            encoder = Encoder.load(settings)
            if rag_settings.qdrant_enabled:
                self._store = open_store(rag_settings)
                self._pictures = PictureIndex(self._store, identity_of(encoder))
                self._open_default_collection(self._pictures)
        except (EncoderError, RagError) as error:
            _give_up(str(error))
        except Exception:
            logger.exception("the model could not be loaded")
            _give_up("see the traceback above")
        else:
            self._encoder = encoder
            self._runners = Runners(encoder, max_batch_size=settings.max_batch_size)
            logger.info("serving", extra=self._start_line(encoder))

    def _open_default_collection(self, pictures: PictureIndex) -> None:
        try:
            pictures.open(rag_settings.image_search_collection)
        except RagError as error:
            logger.warning("search is degraded: %s", error)  # embedding works all the same

    def _start_line(self, encoder: Encoder) -> dict[str, Any]:
        store = "off"
        if rag_settings.qdrant_enabled:
            store = rag_settings.qdrant_host or f"embedded at {rag_settings.qdrant_path}"
        return {
            "model": encoder.model,
            "device": encoder.device,
            "dtype": encoder.dtype,
            "dimension": encoder.embedding_dim,
            "store": store,
            "url": f"http://{settings.host}:{settings.port}",
        }

    @bentoml.on_shutdown
    def close(self) -> None:
        if self._runners:
            self._runners.close()
        if self._store:
            self._store.close()

    def __is_ready__(self) -> bool:
        return self._runners is not None

    @property
    def encoder(self) -> Encoder:
        if self._encoder is None:
            raise _loading()
        return self._encoder

    @property
    def runners(self) -> Runners:
        if self._runners is None:
            raise _loading()
        return self._runners

    @property
    def pictures(self) -> PictureIndex:
        if not rag_settings.qdrant_enabled:
            raise SearchDisabled(
                "this service runs without search; QDRANT_ENABLED=true turns it on"
            )
        if self._pictures is None:
            raise _loading()
        return self._pictures

    @bentoml.api(route="/embed/text")
    @answers_errors
    async def embed_text(self, request: TextRequest, /) -> EmbeddingResponse:
        """Embed a text."""
        normalize = _normalize(request.normalize)
        embedding = await self.runners.embed_text(request.text, normalize=normalize)
        return self._embedded(embedding, normalize)

    @bentoml.api(route="/embed/image")
    @answers_errors
    async def embed_image(self, request: ImageRequest, /) -> EmbeddingResponse:
        """Embed an image, given as base64 or by its URL."""
        return await self.embedded_image(await self._bytes(request), request.normalize)

    @bentoml.api(route="/images")
    @answers_errors
    async def index_image(self, request: IndexRequest, /) -> IndexResponse:
        """Index a picture with what is known about it, replacing what its id held."""
        collection = request.collection or rag_settings.image_search_collection
        pictures = self.pictures
        picture = Picture(
            request.id,
            await self._bytes(request),
            request.image_path,
            request.dao_id,
            request.metadata,
        )
        indexed = not await asyncio.to_thread(pictures.holds, picture, collection)
        if indexed:
            vector = await self.runners.embed_image(picture.data, normalize=True)
            await asyncio.to_thread(pictures.add, picture, vector, collection)
        return IndexResponse(
            id=request.id, dao_id=request.dao_id, collection=collection, indexed=indexed
        )

    @bentoml.api(route="/search")
    @answers_errors
    async def search(self, request: SearchRequest, /) -> SearchResponse:
        """Find pictures by a text or by an image, best first."""
        pictures = self.pictures
        if request.text is not None:
            vector = await self.runners.embed_text(request.text, normalize=True)
        else:
            assert request.image is not None  # the schema asks for exactly one
            data = await self._bytes(request.image)
            vector = await self.runners.embed_image(data, normalize=True)
        hits = await asyncio.to_thread(
            partial(
                pictures.search,
                vector,
                request.collection or rag_settings.image_search_collection,
                top_k=request.top_k or rag_settings.image_search_default_top_k,
                dao_id=request.dao_id,
                score_threshold=request.score_threshold,
            )
        )
        return SearchResponse(
            hits=[Hit(**asdict(hit)) for hit in hits], count=len(hits), model=self.encoder.model
        )

    async def embedded_image(self, data: bytes, normalize: bool | None) -> EmbeddingResponse:
        wanted = _normalize(normalize)
        return self._embedded(await self.runners.embed_image(data, normalize=wanted), wanted)

    async def health(self) -> HealthResponse:
        await self.runners.check()
        return HealthResponse(status="healthy", **_hardware(self.encoder))

    def info(self) -> InfoResponse:
        encoder = self.encoder
        return InfoResponse(
            model_name=encoder.model_name,
            pretrained=encoder.pretrained,
            device=encoder.device,
            dtype=encoder.dtype,
            embedding_dim=encoder.embedding_dim,
            context_length=encoder.context_length,
            preprocess=encoder.preprocess_description,
            weights_digest=encoder.weights_digest,
            normalize_default=settings.normalize_embeddings,
            image_formats=list(FORMATS),
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            image_urls=settings.allow_image_urls,
            qdrant_enabled=rag_settings.qdrant_enabled,
            collection=(
                rag_settings.image_search_collection if rag_settings.qdrant_enabled else None
            ),
            version=VERSION,
        )

    def _embedded(self, embedding: Embeddings, normalized: bool) -> EmbeddingResponse:
        return EmbeddingResponse(
            embedding=embedding.tolist(),
            dimension=len(embedding),
            model=self.encoder.model,
            normalized=normalized,
        )

    async def _bytes(self, source: ImageSource) -> bytes:
        if source.image_base64 is not None:
            return base64_bytes(source.image_base64)
        assert source.image_url is not None  # the schema asks for exactly one
        return await self._fetcher.fetch(source.image_url)


def _normalize(given: bool | None) -> bool:
    return settings.normalize_embeddings if given is None else given


def _loading() -> NotReady:
    return NotReady("the model is still loading; /readyz says when it is ready")


def _hardware(encoder: Encoder) -> Mapping[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": encoder.device,
        "model": encoder.model,
        "cuda_available": cuda,
        "gpu_name": torch.cuda.get_device_name() if cuda else None,
    }


def _give_up(why: str) -> None:
    """Say why nothing can be served, and stop: the supervisor too, if there is one."""
    logger.error("not serving: %s", why)
    if "BENTOML_RUNNER_MAP" in os.environ:  # started by `bentoml serve`
        os.kill(os.getppid(), signal.SIGTERM)


served: Any = VisionEncoder  # the decorator made it a bentoml.Service
served.add_asgi_middleware(
    RequestMiddleware,
    json_routes=frozenset(method.route for method in served.apis.values()),
    # base64 adds a third; the rest is room for metadata
    max_body_bytes=settings.max_image_bytes * 4 // 3 + 1_000_000,
)
