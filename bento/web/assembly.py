"""The HTTP side of one service: handlers bound to the route table, and middleware."""

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
from bento.web.connections import CONNECTION
from bento.web.headers import SecurityHeaders, cors_options
from bento.web.logs import configure_logs
from bento.web.metrics import Metrics
from bento.web.middleware import REQUEST_SECONDS, RequestMiddleware
from bento.web.responses import Handler, Responder

if TYPE_CHECKING:
    from bento.runners.admission import ByteBudget

logger = logging.getLogger("vision_encoder")

FindHandler = Callable[[Any], Callable[[Any], Awaitable[Any]]]
"""Returns the handler of a request's body, given the service."""


class Web:
    """What BentoML is given: API methods, an app for the other routes, middleware.

    `handlers` are those of the routes that neither BentoML nor `bento.web.endpoints` serves.
    """

    connection: Final = CONNECTION
    timeout: Final = REQUEST_SECONDS + 5  # seconds; RequestMiddleware comes first, with our error

    def __init__(self, settings: Settings, handlers: Mapping[str, Handler]) -> None:
        self._settings = settings
        self.metrics = Metrics(workers=settings.workers)
        self._responder = Responder(self.metrics)
        self.app = _mounted({**endpoints.HANDLERS, **handlers}, self._responder)

    def api(self, name: str, find: FindHandler) -> Any:
        """Return the BentoML method of a route that takes JSON by POST.

        Path, body, answer and words are those of the route table.
        """
        declared, responder = route(name), self._responder

        # BentoML hides or reshapes what is raised; a response that is returned it leaves alone.
        async def answer(self: Any, request: Any, /, ctx: Any) -> Any:
            accept = ctx.request.headers.get("accept", "")
            response = await responder.respond(lambda: find(self)(request), accept)
            ctx.response.status_code = response.status_code  # which BentoML answers with
            return response

        answer.__name__ = answer.__qualname__ = name
        answer.__doc__ = declared.summary
        answer.__signature__ = _signature(declared)  # type: ignore[attr-defined]
        return bentoml.api(route=declared.path)(answer)

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


def _signature(declared: Route) -> inspect.Signature:
    """Return the signature from which BentoML takes the body and the answer of a route."""
    one = inspect.Parameter
    parameters = [
        one("self", one.POSITIONAL_ONLY),
        one("request", one.POSITIONAL_ONLY, annotation=declared.body),
        one("ctx", one.POSITIONAL_OR_KEYWORD),
    ]
    return inspect.Signature(parameters, return_annotation=declared.answer)


def _mounted(handlers: Mapping[str, Handler], responder: Responder) -> Starlette:
    """Return the app that serves every route of the table that BentoML does not."""
    return Starlette(
        routes=[
            StarletteRoute(
                each.path.replace("/images/{id}", "/images/{id:path}"),  # an id may have slashes
                responder.wrap(handlers[each.name]),
                methods=[each.method],
            )
            for each in sorted(ROUTES, key=lambda each: -len(each.path))
            if not each.is_api and each.name not in BENTOML
        ]
    )
