"""The HTTP side of one service, put together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import bentoml
from starlette.middleware.cors import CORSMiddleware

from bento.settings import Settings
from bento.web import endpoints
from bento.web.access import Access, warning
from bento.web.api import binder
from bento.web.connections import CONNECTION
from bento.web.headers import SecurityHeaders, cors_options
from bento.web.logs import configure_logs
from bento.web.metrics import Metrics
from bento.web.middleware import REQUEST_SECONDS, RequestMiddleware
from bento.web.responses import Handler, Responder

if TYPE_CHECKING:
    from bento.runners.admission import ByteBudget

logger = logging.getLogger("vision_encoder")


class Web:
    """What BentoML is given: `route` for methods, `app` for other routes, middleware.

    `handlers` are those of the routes that neither BentoML nor `bento.web.endpoints` serves.
    """

    connection: Final = CONNECTION
    timeout: Final = REQUEST_SECONDS + 5  # seconds; RequestMiddleware comes first, with our error

    def __init__(self, settings: Settings, handlers: Mapping[str, Handler]) -> None:
        self._settings = settings
        self.metrics = Metrics(workers=settings.workers)
        responder = Responder(self.metrics)
        self.route = binder(responder)
        self.app = endpoints.mounted({**endpoints.HANDLERS, **handlers}, responder)

    def start(self, service: Any) -> None:
        """Configure the logs of a worker, and let the mounted routes find its service."""
        configure_logs()
        if (said := warning(self._settings)) and bentoml.server_context.worker_index in (None, 1):
            logger.warning(said)
        self.app.state.service = service

    def install(self, service: Any, budget: ByteBudget) -> None:
        """Add the middleware to a BentoML service; the last one is the outermost."""
        settings = self._settings
        service.add_asgi_middleware(SecurityHeaders)
        if settings.allowed_origins:
            service.add_asgi_middleware(CORSMiddleware, **cors_options(settings.allowed_origins))
        service.add_asgi_middleware(
            RequestMiddleware,
            access=Access(settings),
            max_body_bytes=settings.max_request_bytes,
            max_requests=settings.max_requests,
            budget=budget,
            metrics=self.metrics,
        )
