"""Assemble the HTTP side of the service: handlers, bound to the route table, and middleware."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import bentoml
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route as StarletteRoute

from bento.contract.route import Route
from bento.contract.routes import BENTOML, ROUTES, route
from bento.settings import Settings
from bento.web import endpoints
from bento.web.access import Access, warning
from bento.web.connections.connection import CONNECTION, Connection
from bento.web.connections.headers import SecurityHeaders, cors_options
from bento.web.connections.proxy import Compression, RootPath
from bento.web.logs import configure_logs
from bento.web.metrics import Metrics
from bento.web.middleware import REQUEST_SECONDS, RequestMiddleware
from bento.web.responses import Handler, Responder

if TYPE_CHECKING:
    from bento.runners.admission import ByteBudget

logger = logging.getLogger("vision_encoder")

FindHandler = Callable[[Any], Callable[[Any], Awaitable[Any]]]
"""Takes the service and returns the handler of a request body."""


class Web:
    """Makes what BentoML serves: API methods, an app for the other routes, and middleware.

    `handlers` has the handler of each route that neither BentoML nor `bento.web.endpoints` serves.
    """

    connection: Final = CONNECTION
    # RequestMiddleware times out first, with our error.
    timeout: Final = REQUEST_SECONDS + 5  # seconds

    def __init__(self, settings: Settings, handlers: Mapping[str, Handler]) -> None:
        self._settings = settings
        Connection.keep_alive_seconds = settings.keep_alive_seconds
        Connection.max_connections = settings.max_connections
        self.metrics = Metrics(workers=settings.workers)
        self._responder = Responder(self.metrics)
        self.app = _mounted({**endpoints.HANDLERS, **handlers}, self._responder)

    def api(self, name: str, find: FindHandler) -> Any:
        """Return the BentoML method of a route that takes JSON by POST.

        The route table gives its path, body, answer and summary. `find` returns its handler.
        """
        declared, responder = route(name), self._responder

        # BentoML changes errors that a method raises, but not a response that it returns.
        async def answer(self: Any, request: Any, /, ctx: Any) -> Any:
            accept = ctx.request.headers.get("accept", "")
            response = await responder.respond(lambda: find(self)(request), accept)
            ctx.response.status_code = response.status_code  # BentoML takes the status from here
            return response

        answer.__name__ = answer.__qualname__ = name
        answer.__doc__ = declared.summary
        answer.__signature__ = _signature(declared)  # type: ignore[attr-defined]
        return bentoml.api(route=declared.path)(answer)

    def start(self, service: Any) -> None:
        """Configure the logs of a worker, and give its service to the mounted routes."""
        configure_logs(self._settings.log_format)
        message = warning(self._settings)
        if message and bentoml.server_context.worker_index in (None, 1):
            logger.warning(message)
        self.app.state.service = service

    def install(self, service: Any, budget: ByteBudget) -> None:
        """Add the middleware to a BentoML service; the first one added is the outermost."""
        settings = self._settings
        service.add_asgi_middleware(RootPath, root_path=settings.root_path)
        service.add_asgi_middleware(SecurityHeaders)
        if settings.allowed_origins:
            service.add_asgi_middleware(CORSMiddleware, **cors_options(settings.allowed_origins))
        service.add_asgi_middleware(Compression)
        service.add_asgi_middleware(
            RequestMiddleware,
            access=Access(settings),
            max_body_bytes=settings.max_request_bytes,
            max_items=settings.max_request_items,
            max_requests=settings.max_requests,
            budget=budget,
            metrics=self.metrics,
        )


def _signature(declared: Route) -> inspect.Signature:
    """Return the signature from which BentoML reads the types of body and answer."""
    one = inspect.Parameter
    parameters = [
        one("self", one.POSITIONAL_ONLY),
        one("request", one.POSITIONAL_ONLY, annotation=declared.body),
        one("ctx", one.POSITIONAL_OR_KEYWORD),
    ]
    return inspect.Signature(parameters, return_annotation=declared.answer)


def _mounted(handlers: Mapping[str, Handler], responder: Responder) -> Starlette:
    """Return the app that serves every route of the table that BentoML does not serve."""
    return Starlette(
        routes=[
            StarletteRoute(
                each.path.replace("/images/{id}", "/images/{id:path}"),  # ids may contain slashes
                responder.wrap(handlers[each.name]),
                methods=[each.method],
            )
            for each in sorted(ROUTES, key=lambda each: -len(each.path))
            if not each.is_api and each.name not in BENTOML
        ]
    )
