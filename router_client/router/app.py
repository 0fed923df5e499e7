"""A small reference router: `POST /route`, `GET /health`, `GET /providers`. It keeps no state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bento.contract.errors import describe
from router_client.router.providers import Provider
from router_client.router.rules import RouterRequest, RouterResponse, Rule, choose

MAX_BODY_BYTES: Final = 30_000_000  # a picture of 20 MB in base64
# At most so many large bodies at once: memory holds each several times, as bytes, as text and as
# the request to the service.
LARGE_BYTES: Final = 1_000_000
LARGE_AT_ONCE: Final = 2


def create_router(rules: Sequence[Rule], providers: Mapping[str, Provider]) -> Starlette:
    """Return the app: the rules choose the provider that answers a request."""

    large = asyncio.Semaphore(LARGE_AT_ONCE)

    async def route(request: Request) -> Response:
        async with AsyncExitStack() as stack:
            try:
                body = await _body(request, large, stack)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it
            if body is None:
                return _refusal(413, f"the request has more than {MAX_BODY_BYTES:,} bytes")
            try:
                asked = RouterRequest.model_validate_json(body)
            except ValidationError as error:
                return _refusal(400, describe(error))
            rule = choose(rules, asked)
            if rule is None:
                return _refusal(404, f"no rule is for {_summary(asked)}; {_known(rules)}")
            response = await providers[rule.use_provider].call(asked)
            response.metadata["rule"] = rule.id
            return _answer(response)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "healthy", "providers": sorted(providers)})

    async def list_providers(_: Request) -> Response:
        problems = await asyncio.gather(*(provider.health() for provider in providers.values()))
        listed = [
            {
                "id": provider.provider_id,
                "base_url": provider.base_url,
                "healthy": problem is None,
                "error": problem,
                "rules": [
                    rule.model_dump()
                    for rule in sorted(rules, key=lambda rule: rule.priority)
                    if rule.use_provider == provider.provider_id
                ],
            }
            for provider, problem in zip(providers.values(), problems, strict=True)
        ]
        return JSONResponse({"providers": listed})

    @asynccontextmanager
    async def closing(_: Starlette) -> AsyncIterator[None]:
        yield
        for provider in providers.values():
            await provider.close()

    return Starlette(
        routes=[
            Route("/route", route, methods=["POST"]),
            Route("/health", health),
            Route("/providers", list_providers),
        ],
        exception_handlers={status: partial(_no_such_route, status) for status in (404, 405)},
        lifespan=closing,
    )


async def _body(request: Request, large: asyncio.Semaphore, stack: AsyncExitStack) -> bytes | None:
    """Return the body, None if it is too large; wait for a turn if it is large."""
    body = bytearray()
    waited = False
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
        if len(body) > LARGE_BYTES and not waited:
            await stack.enter_async_context(large)
            waited = True
    return bytes(body)


def _answer(response: RouterResponse) -> Response:
    try:
        return JSONResponse(response.model_dump())
    except ValueError:  # the service's answer has NaN, infinity or a lone surrogate
        problem = "the service answered what cannot be written as JSON"
        return JSONResponse(
            RouterResponse(ok=False, provider_id=response.provider_id, error=problem).model_dump()
        )


async def _no_such_route(status: int, request: Request, _: Exception) -> Response:
    return _refusal(
        status,
        f"there is no {request.method} {request.url.path} here; "
        "allowed: POST /route, GET /health, GET /providers",
    )


def _refusal(status: int, sentence: str) -> Response:
    return JSONResponse(RouterResponse(ok=False, error=sentence).model_dump(), status)


def _summary(request: RouterRequest) -> str:
    operation = request.payload.get("operation")
    return f"mode {request.mode!r}" + (f", payload.operation {operation!r}" if operation else "")


def _known(rules: Sequence[Rule]) -> str:
    modes: set[Any] = {mode for rule in rules for mode in rule.when.get("mode", [])}
    return f"the modes of the rules are {', '.join(sorted(modes)) or 'none'}"
