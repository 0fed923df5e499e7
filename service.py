"""The BentoML service. `bento.contract.routes` defines the paths and bodies of its API methods.

bentoml serve service:VisionEncoder
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import bentoml

from bento import Encoder, Settings
from bento.handlers.embedding import EmbeddingHandler
from bento.handlers.state import StateHandler
from bento.processes.listening import listening_url
from bento.processes.startup import Startup, read_settings, service_options
from bento.processes.stopping import refuse_once_stopping
from bento.processes.workers import end_with_supervisor, end_worker, ending, supervise
from bento.runners.admission import ByteBudget
from bento.runners.pool import Pool
from bento.runners.runners import Runners
from bento.web.assembly import Web
from bento.web.logs import configure_logs, log_loaded
from rag.settings import RagSettings
from rag.web import routes as index_routes
from rag.web.opening import ImageSearch, Threads

STORE_THREADS = 8  # a request, such as a batch of searches, gets at most half of them
settings = read_settings(Settings)
rag_settings = read_settings(RagSettings)
rag_settings.check_workers(settings.workers)
web = Web(settings, index_routes.HANDLERS)
budget = ByteBudget(settings.max_queue_bytes, web.metrics.rejected.labels("bytes").inc)


def pool(name: str, threads: int, share: int | None = None) -> Pool:
    """Return a pool whose calls wait at most MAX_QUEUE_MS, and whose rejections are counted."""
    seconds, rejected = settings.max_queue_ms / 1000, web.metrics.rejected.labels(name).inc
    return Pool(name, threads, share=share, max_seconds=seconds, rejected=rejected)


@dataclass(frozen=True)
class Loaded:
    """The parts of the service that need the loaded model."""

    runners: Runners
    embedding: EmbeddingHandler
    state: StateHandler
    search: ImageSearch


@bentoml.service(**service_options(settings, web.timeout, web.connection))
@bentoml.asgi_app(web.app)
class VisionEncoder:
    """Computes CLIP embeddings of texts and images, and searches pictures by them."""

    settings, metrics = settings, web.metrics
    supervise = bentoml.on_deployment(supervise)
    log = bentoml.on_deployment(partial(configure_logs, settings.log_format))

    def __init__(self) -> None:
        web.start(self)
        end_with_supervisor()
        if settings.workers == 1:
            refuse_once_stopping(unless=ending)
        self._store = pool("store", STORE_THREADS, share=STORE_THREADS // 2)
        self._thumbnails = pool("thumbnails", 2)
        self._startup = Startup(self._load)

    def _load(self) -> Loaded:
        encoder = Encoder.load(settings)
        runners = Runners(
            encoder, settings, budget=budget, metrics=web.metrics, on_death=end_worker
        )
        embedding = EmbeddingHandler(encoder, runners, settings)
        observer = web.metrics.store(rag_settings.image_search_collection)
        threads = Threads(self._store.run, self._thumbnails.run, large=runners.large.run)
        search = ImageSearch.open(
            rag_settings, encoder, runners, embedding.image_bytes, observer, threads
        )
        state = StateHandler(encoder, runners, settings, collection=search.collection)
        url = listening_url(settings.host, settings.port)
        log_loaded({**state.summary, "store": rag_settings.store, "url": url})
        web.metrics.loaded(encoder.model, encoder.weights_digest, encoder.dtypes, encoder.device)
        return Loaded(runners, embedding, state, search)

    @bentoml.on_shutdown
    def close(self) -> None:
        if self._startup.done:
            self.loaded.runners.close()
            self._store.close()
            self._thumbnails.close()
            self.loaded.search.close()

    def __is_ready__(self) -> bool:
        return self._startup.done and self.loaded.runners.alive

    @property
    def loaded(self) -> Loaded:
        return self._startup.loaded

    @property
    def image_search(self) -> ImageSearch:
        return self.loaded.search if rag_settings.qdrant_enabled else ImageSearch(None, None)

    embed_text = web.api("embed_text", lambda service: service.loaded.embedding.text)
    embed_texts = web.api("embed_texts", lambda service: service.loaded.embedding.texts)
    embed_image = web.api("embed_image", lambda service: service.loaded.embedding.image_of)
    openai_embeddings = web.api(
        "openai_embeddings", lambda service: service.loaded.embedding.openai
    )
    rank = web.api("rank", lambda service: service.loaded.embedding.rank)
    index_image = web.api("index_image", lambda service: service.image_search.index.index)
    search = web.api("search", lambda service: service.image_search.answer)
    search_many = web.api("search_many", lambda service: service.image_search.searcher.search_many)


web.install(VisionEncoder, budget)
