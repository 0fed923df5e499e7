"""BentoML's routes: methods of the service, with the path, body and words of the route table."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import bentoml

from bento.contract.routes import Route, route
from bento.web.responses import Responder

Method = Callable[[Any, Any], Awaitable[Any]]


def binder(responder: Responder) -> Callable[[Method], Any]:
    """Return a decorator for methods of the service that are named as in the route table."""

    def decorate(method: Method) -> Any:
        declared = route(method.__name__)

        # BentoML hides or reshapes what is raised; a response that is returned it leaves alone.
        async def answer(self: Any, request: Any, /, ctx: Any) -> Any:
            accept = ctx.request.headers.get("accept", "")
            response = await responder.respond(method(self, request), accept)
            ctx.response.status_code = response.status_code  # which BentoML answers with
            return response

        answer.__name__ = answer.__qualname__ = method.__name__
        answer.__module__ = method.__module__
        answer.__doc__ = declared.summary
        answer.__signature__ = _signature(declared)  # type: ignore[attr-defined]
        return bentoml.api(route=declared.path)(answer)

    return decorate


def _signature(declared: Route) -> inspect.Signature:
    """Return the signature from which BentoML takes the body and the answer of a route."""
    one = inspect.Parameter
    parameters = [
        one("self", one.POSITIONAL_ONLY),
        one("request", one.POSITIONAL_ONLY, annotation=declared.body),
        one("ctx", one.POSITIONAL_OR_KEYWORD),
    ]
    return inspect.Signature(parameters, return_annotation=declared.answer)
