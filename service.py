"""The BentoML service: resources and routes.

bentoml serve service:VisionEncoder
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

import bentoml
from pydantic import ValidationError
from rag.web.answering import IndexAnswering
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from uvicorn.config import HTTP_PROTOCOLS

from bento import Encoder, EncoderError, Settings
from bento.contract.embedding import (
    EmbeddingResponse,
    EmbeddingsResponse,
    HealthResponse,
    ImageRequest,
    InfoResponse,
    RankRequest,
    RankResponse,
    TextRequest,
    TextsRequest,
)
from bento.contract.errors import NotReady, SearchDisabled, describe
from bento.contract.images import IndexRequest, IndexResponse
from bento.contract.openai import OpenAIEmbeddingsRequest, OpenAIEmbeddingsResponse
from bento.contract.search import ManySearchesRequest, ManySearchesResponse
from bento.encoder.images import FORMATS, decode_image
from bento.handlers.embedding import Answering
from bento.processes.workers import end_worker, ending, give_up, listen_for_workers
from bento.runners.admission import ByteBudget
from bento.runners.runners import Runners
from bento.version import VERSION, revision
from bento.web.access import Access, warning
from bento.web.api_docs import DOCS_HEADERS, DOCS_PAGE, DOCS_SCRIPT, complete
from bento.web.connections import refuse_once_stopping
from bento.web.errors import answering
from bento.web.forms import read_upload, read_uploads
from bento.web.headers import SecurityHeaders, cors_options
from bento.web.logs import configure_logs
from bento.web.metrics import Metrics
from bento.web.middleware import REQUEST_SECONDS, RequestMiddleware
from rag import PictureIndex, RagError, RagSettings, SearchRequest, SearchResponse, identity_of
from rag.store.interface import Store
from rag.store.opening import open_store
from rag.web import routes as index_routes
from rag.web.thumbnails import Thumbnails

logger = logging.getLogger("vision_encoder")

try:
    settings = Settings()
    rag_settings = RagSettings()
except ValidationError as error:
    raise SystemExit(f"a variable is not valid: {describe(error)}") from None

if settings.workers > 1 and rag_settings.qdrant_enabled and not rag_settings.qdrant_host:
    raise SystemExit(
        f"WORKERS={settings.workers} cannot share the embedded store at QDRANT_PATH, which one "
        "process owns: set QDRANT_HOST to a Qdrant server, or WORKERS=1"
    )
if settings.device.startswith("cuda:"):
    # BentoML would hide all GPUs but the first; DEVICE says which one
    os.environ.setdefault("BENTOML_DISABLE_GPU_ALLOCATION", "1")

HTTP_PROTOCOLS["auto"] = "bento.web.connections:Connection"  # which is what BentoML takes

listen_for_workers()
metrics = Metrics(workers=settings.workers)
budget = ByteBudget(settings.max_queue_bytes, metrics.rejected.labels("bytes").inc)

answers_errors = answering(EncoderError, RagError)

# What a request takes of the event loop and the threads beside it, on shared cores: a small model
# is quicker than HTTP, and then the queues before the towers do not see what waits.
_HTTP_MS = 8


def _exports_spans() -> bool:
    return bool({"BENTOML_CONFIG", "BENTOML_CONFIG_OPTIONS"} & os.environ.keys())


def _service(request: Request) -> VisionEncoder:
    service: VisionEncoder = request.app.state.service
    return service


async def home(_: Request) -> Response:
    return RedirectResponse("/ui")


async def docs(_: Request) -> Response:
    return HTMLResponse(DOCS_PAGE, headers=DOCS_HEADERS)


async def docs_script(_: Request) -> Response:
    return Response(DOCS_SCRIPT, media_type="text/javascript")


async def openapi(_: Request) -> Response:
    apis = {method.route: method.func for method in served.apis.values()}
    document = served.openapi_spec.asdict()
    return JSONResponse(complete(document, apis, index_routes.DESCRIBED, index_routes.BODIES))


@answers_errors
async def health(request: Request) -> Response:
    return JSONResponse((await _service(request).health()).model_dump())


@answers_errors
async def info(request: Request) -> Response:
    return JSONResponse(_service(request).info().model_dump())


async def exposition(_: Request) -> Response:
    return Response(metrics.exposition(), media_type=metrics.content_type)


@answers_errors
async def embed_image_upload(request: Request) -> Response:
    data, normalize = await read_upload(request)
    return await _service(request).answering.image(data, normalize)


@answers_errors
async def embed_images(request: Request) -> Response:
    images, normalize = await read_uploads(request, settings.max_request_items)
    return await _service(request).answering.images(images, normalize)


app = Starlette(
    routes=[
        Route("/", home),
        Route("/docs", docs),
        Route("/docs/start.js", docs_script),
        Route("/openapi.json", openapi),
        Route("/health", health),
        Route("/info", info),
        Route("/metrics", exposition),
        Route("/embed/image/upload", embed_image_upload, methods=["POST"]),
        Route("/embed/images", embed_images, methods=["POST"]),
        *(
            Route(path, answers_errors(handler), methods=[method])
            for method, path, handler in index_routes.ROUTES
        ),
    ]
)


@bentoml.service(
    name="vision-encoder",
    workers=settings.workers,
    resources={"gpu": 1} if settings.device.startswith("cuda") else {"cpu": "2"},
    http={"host": settings.host, "port": settings.port},
    # RequestMiddleware comes first, with an error of our shape.
    traffic={"timeout": REQUEST_SECONDS + 5},
    # RequestMiddleware logs and counts each request once: BentoML's counters are by path, of
    # which a client can ask for any number. Spans cost half of a request's CPU time in the
    # framework, and go nowhere unless BentoML is configured to export them.
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={} if _exports_spans() else {"excluded_urls": ".*"},
)
@bentoml.asgi_app(app)
class VisionEncoder:
    """Turns texts and images into CLIP embeddings, and finds pictures by them."""

    def __init__(self) -> None:
        configure_logs()
        if (said := warning(settings)) and bentoml.server_context.worker_index in (None, 1):
            logger.warning(said)
        self._answering: Answering | None = None
        self._index: IndexAnswering | None = None
        self._store: Store | None = None
        app.state.service = self
        if settings.workers == 1:
            refuse_once_stopping(unless=ending)
        # /livez answers while the model loads; /readyz waits for it
        threading.Thread(target=self._load, name="load", daemon=True).start()

    def _load(self) -> None:
        try:
            encoder = Encoder.load(settings)
            runners = Runners(
                encoder, settings, budget=budget, metrics=metrics, on_death=end_worker
            )
            answering = Answering(encoder, runners, settings)
            if rag_settings.qdrant_enabled:
                self._store = open_store(rag_settings)
                self._index = self._open_index(encoder, answering, self._store)
        except (EncoderError, RagError) as error:
            give_up(str(error))
        except Exception:
            logger.exception("the model could not be loaded")
            give_up("see the traceback above")
        else:
            gc.collect()
            gc.freeze()  # what is loaded stays: looking through it paused everyone for 0.2 s
            self._answering = answering
            logger.info("serving", extra=self._start_line(encoder))

    def _open_index(self, encoder: Encoder, answering: Answering, store: Store) -> IndexAnswering:
        pictures = PictureIndex(store, identity_of(encoder))
        try:
            pictures.open(rag_settings.image_search_collection, create=True)
        except RagError as error:
            logger.warning("search is degraded: %s", error)  # embedding works all the same
        thumbnails = Thumbnails(
            rag_settings.thumbnails_path,
            lambda data: decode_image(data, **encoder.image_limits),
            max_bytes=settings.max_image_bytes,
        )
        return IndexAnswering(
            pictures,
            answering.runners,
            answering.image_bytes,
            thumbnails,
            rag_settings,
            encoder.model,
        )

    def _start_line(self, encoder: Encoder) -> dict[str, Any]:
        store = "off"
        if rag_settings.qdrant_enabled:
            store = rag_settings.qdrant_host or f"embedded at {rag_settings.qdrant_path}"
        return {
            "model": encoder.model,
            "device": encoder.device,
            **encoder.dtypes,
            "dimension": encoder.embedding_dim,
            "store": store,
            "url": f"http://{settings.host}:{settings.port}",
        }

    @bentoml.on_shutdown
    def close(self) -> None:
        if self._answering:
            self._answering.runners.close()
        if self._store:
            self._store.close()

    def __is_ready__(self) -> bool:
        return self._answering is not None and self._answering.runners.alive

    @property
    def answering(self) -> Answering:
        if self._answering is None:
            raise _loading()
        return self._answering

    @property
    def index(self) -> IndexAnswering:
        if not rag_settings.qdrant_enabled:
            raise SearchDisabled(
                "this service runs without search; QDRANT_ENABLED=true turns it on"
            )
        if self._index is None:
            raise _loading()
        return self._index

    # Where a method returns a ready response, its annotation is what /schema.json says of it.

    @bentoml.api(route="/embed/text")
    @answers_errors
    async def embed_text(self, request: TextRequest, /) -> EmbeddingResponse:
        """Embed a text."""
        return await self.answering.text(request)  # type: ignore[return-value]

    @bentoml.api(route="/embed/texts")
    @answers_errors
    async def embed_texts(self, request: TextsRequest, /) -> EmbeddingsResponse:
        """Embed many texts."""
        return await self.answering.texts(request)  # type: ignore[return-value]

    @bentoml.api(route="/embed/image")
    @answers_errors
    async def embed_image(self, request: ImageRequest, /) -> EmbeddingResponse:
        """Embed an image, given as base64 or by its URL."""
        data = await self.answering.image_bytes(request)
        return await self.answering.image(data, request.normalize)  # type: ignore[return-value]

    @bentoml.api(route="/v1/embeddings")
    @answers_errors
    async def openai_embeddings(
        self, request: OpenAIEmbeddingsRequest, /
    ) -> OpenAIEmbeddingsResponse:
        """Embed texts and images as OpenAI's API does."""
        return await self.answering.openai(request)  # type: ignore[return-value]

    @bentoml.api(route="/rank")
    @answers_errors
    async def rank(self, request: RankRequest, /) -> RankResponse:
        """Say which of several texts describes an image best."""
        return await self.answering.rank(request)

    @bentoml.api(route="/images")
    @answers_errors
    async def index_image(self, request: IndexRequest, /) -> IndexResponse:
        """Index a picture with what is known about it, replacing what its id held."""
        return await self.index.index(request)

    @bentoml.api(route="/search")
    @answers_errors
    async def search(self, request: SearchRequest, /) -> SearchResponse:
        """Find pictures by texts, images or both, best first."""
        return await index_routes.answer_search(self.index, request)  # type: ignore[return-value]

    @bentoml.api(route="/search/batch")
    @answers_errors
    async def search_many(self, request: ManySearchesRequest, /) -> ManySearchesResponse:
        """Make many searches in one call, each answered for itself."""
        return await self.index.search_many(request)

    async def health(self) -> HealthResponse:
        await self.answering.runners.check()
        return HealthResponse(status="healthy", **_hardware(self.answering.encoder))

    def info(self) -> InfoResponse:
        encoder = self.answering.encoder
        return InfoResponse(
            model_name=encoder.model_name,
            pretrained=encoder.pretrained,
            device=encoder.device,
            dtypes=encoder.dtypes,
            embedding_dim=encoder.embedding_dim,
            context_length=encoder.context_length,
            preprocess=encoder.preprocess_description,
            weights_digest=encoder.weights_digest,
            normalize_default=settings.normalize_embeddings,
            image_formats=list(FORMATS),
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_request_bytes=settings.max_request_bytes,
            max_request_items=settings.max_request_items,
            image_urls=settings.allow_image_urls,
            qdrant_enabled=rag_settings.qdrant_enabled,
            collection=(
                rag_settings.image_search_collection if rag_settings.qdrant_enabled else None
            ),
            version=VERSION,
            revision=revision(),
        )


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


served: Any = VisionEncoder  # the decorator made it a bentoml.Service
served.add_asgi_middleware(SecurityHeaders)
if settings.allowed_origins:
    served.add_asgi_middleware(CORSMiddleware, **cors_options(settings.allowed_origins))
served.add_asgi_middleware(
    RequestMiddleware,
    access=Access(settings),
    form_routes=frozenset({"/embed/image/upload", "/embed/images", "/search/upload"}),
    json_routes=frozenset(method.route for method in served.apis.values()),
    max_body_bytes=settings.max_request_bytes,
    max_requests=max(64, settings.max_queue_ms // _HTTP_MS),
    budget=budget,
    metrics=metrics,
)
