"""The reference router, a stateless app: `POST /route`, `GET /health`, `GET /providers`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from hmac import compare_digest
from typing import Any, Final

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bento.contract.errors import describe
from router_client.router.providers import Provider
from router_client.router.rules import RouterRequest, RouterResponse, Rule, choose

MAX_BODY_BYTES: Final = 30_000_000  # enough for an image of 20 MB in base64
# The router handles at most two large bodies at a time, because memory holds several copies of
# each: the bytes, the decoded text and the request to the service.
LARGE_BYTES: Final = 1_000_000
LARGE_AT_ONCE: Final = 2


def create_router(
    rules: Sequence[Rule], providers: Mapping[str, Provider], api_key: str = ""
) -> Starlette:
    """Return an app that passes each request to the provider that the rules choose.

    `providers` maps ids to providers. The app closes them when it shuts down. If there is an
    `api_key`, every route but `/health` requires it.
    """
    large = asyncio.Semaphore(LARGE_AT_ONCE)

    async def route(request: Request) -> Response:
        if api_key and not _has_key(request, api_key):
            return _unauthorized()
        async with AsyncExitStack() as stack:
            try:
                body = await _body(request, large, stack)
            except ClientDisconnect:
                return Response(status_code=400)  # never sent: the client has left
            if body is None:
                return _error(413, f"the request has more than {MAX_BODY_BYTES:,} bytes, the limit")
            try:
                parsed = RouterRequest.model_validate_json(body)
            except ValidationError as error:
                return _error(400, describe(error))
            rule = choose(rules, parsed)
            if rule is None:
                return _error(404, f"no rule matches {_summary(parsed)}; {_known_modes(rules)}")
            response = await providers[rule.use_provider].call(parsed)
            response.metadata["rule"] = rule.id
            return _answer(response)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "healthy", "providers": sorted(providers)})

    async def list_providers(request: Request) -> Response:
        if api_key and not _has_key(request, api_key):
            return _unauthorized()
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
    """Return the body, or None if it is too large.

    A large body waits for the semaphore `large`, which `stack` releases.
    """
    body = bytearray()
    acquired = False
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
        if len(body) > LARGE_BYTES and not acquired:
            await stack.enter_async_context(large)
            acquired = True
    return bytes(body)


def _has_key(request: Request, api_key: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and compare_digest(given.strip().encode(), api_key.encode())


def _unauthorized() -> Response:
    response = _error(
        401, "the router's API key is missing or wrong: send it as Authorization: Bearer KEY"
    )
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _answer(response: RouterResponse) -> Response:
    try:
        return JSONResponse(response.model_dump())
    except ValueError:  # NaN, infinity or a lone surrogate
        problem = "the answer of the service contains numbers or text that JSON cannot represent"
        return JSONResponse(
            RouterResponse(ok=False, provider_id=response.provider_id, error=problem).model_dump()
        )


async def _no_such_route(status: int, request: Request, _: Exception) -> Response:
    return _error(
        status,
        f"the router has no route {request.method} {request.url.path}; "
        "its routes are POST /route, GET /health and GET /providers",
    )


def _error(status: int, message: str) -> Response:
    return JSONResponse(RouterResponse(ok=False, error=message).model_dump(), status)


def _summary(request: RouterRequest) -> str:
    operation = request.payload.get("operation")
    return f"mode {request.mode!r}" + (f", payload.operation {operation!r}" if operation else "")


def _known_modes(rules: Sequence[Rule]) -> str:
    modes: set[Any] = {mode for rule in rules for mode in rule.when.get("mode", [])}
    return f"the rules know these modes: {', '.join(sorted(modes)) or 'none'}"
