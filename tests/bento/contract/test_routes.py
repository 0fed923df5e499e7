"""The route table agrees with the documentation, the clients and the parity corpus."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import httpx
import pytest

from bento.contract.route import Route
from bento.contract.routes import ROUTES
from bento.web.api_docs import markdown, openapi
from router_client import AsyncVisionEncoderClient, InvalidInput, VisionEncoderClient
from tests.parity.corpus import CORPUS
from tests.support.paths import ROOT

PICTURE: Final = b"picture"
# A call of each client method, by its name.
CALLS: Final[dict[str, Callable[[Any], Any]]] = {
    "embed_text": lambda client: client.embed_text("a"),
    "embed_texts": lambda client: client.embed_texts(["a"]),
    "embed_image_url": lambda client: client.embed_image_url("http://a/b.png"),
    "embed_image_bytes": lambda client: client.embed_image_bytes(PICTURE),
    "embed_images": lambda client: client.embed_images([PICTURE] * 2),
    "rank": lambda client: client.rank(PICTURE, ["a"]),
    "search": lambda client: client.search("a"),
    "search_many": lambda client: client.search_many([{"text": "a"}]),
    "index_image": lambda client: client.index_image("42", PICTURE),
    "update_image": lambda client: client.update_image("42", metadata={}),
    "delete_image": lambda client: client.delete_image("42"),
    "images": lambda client: client.images("pictures"),
    "stats": lambda client: client.stats("pictures"),
    "publish": lambda client: client.publish("pictures"),
    "drop": lambda client: client.drop("pictures", "0a1b2c3d"),
    "health": lambda client: client.health(),
    "info": lambda client: client.info(),
}


def matches(route: Route, method: str, path: str) -> bool:
    pattern = re.sub(r"\{\w+\}", "[^/]+", route.path)
    return method == route.method and re.fullmatch(pattern, path) is not None


class Refusing(httpx.MockTransport):
    """A transport that records the requests, and answers each with 400."""

    def __init__(self) -> None:
        super().__init__(self._refuse)
        self.asked: list[tuple[str, str]] = []

    def _refuse(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, request.url.path))
        return httpx.Response(400, json={"error": "wrong", "code": "invalid_request"})


def call_blocking(call: Callable[[Any], Any], transport: Refusing) -> None:
    with VisionEncoderClient("http://encoder.test", transport=transport) as client:
        result = call(client)
        if isinstance(result, Iterator):
            list(result)


def call_async(call: Callable[[Any], Any], transport: Refusing) -> None:
    async def run() -> None:
        async with AsyncVisionEncoderClient("http://encoder.test", transport=transport) as client:
            result = call(client)
            if isinstance(result, AsyncIterator):
                async for _ in result:
                    pass
            else:
                await result

    asyncio.run(run())


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.answer], ids=lambda route: route.name
)
def test_the_openapi_document_has_the_route(route: Route) -> None:
    operation = openapi()["paths"][route.path][route.method.lower()]
    assert operation["summary"] == route.summary.rstrip(".")
    body = operation.get("requestBody", {}).get("content", {})
    assert body.keys() == {
        *(["application/json"] if route.body else []),
        *(["multipart/form-data"] if route.form else []),
    }


def test_every_field_of_a_request_has_a_description() -> None:
    bodies = [body for route in ROUTES for body in (route.body, route.form) if body]
    assert bodies
    fields = [(body, name, field) for body in bodies for name, field in body.model_fields.items()]
    assert [(body, name) for body, name, field in fields if not field.description] == []


def test_the_api_page_is_generated_from_the_table() -> None:
    page = (ROOT / "docs/api.md").read_text()
    assert page == markdown(), "run `make docs`"
    for route in ROUTES:
        assert f"### `{route.method} {route.path}`" in page


def test_the_api_page_shows_the_objects_in_an_answer() -> None:
    (rank,) = re.findall(r"### `POST /rank`\n(.*?)\n###? ", markdown(), re.S)
    assert "Answer: `{ranking: [{text, probability, score}], model}`." in rank
    assert "| `ranking[].score` | answer | Cosine similarity to the image. |" in rank
    (openai,) = re.findall(r"### `POST /v1/embeddings`\n(.*?)\n###? ", markdown(), re.S)
    assert "usage: {prompt_tokens, total_tokens}}`." in openai
    assert "| `usage.prompt_tokens` | answer | " in openai


@pytest.mark.parametrize("call_with", [call_blocking, call_async])
@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.client], ids=lambda route: route.name
)
def test_both_clients_call_the_route(
    route: Route, call_with: Callable[[Callable[[Any], Any], Refusing], None]
) -> None:
    transport = Refusing()
    with suppress(InvalidInput):  # `embed_images` yields its errors
        call_with(CALLS[str(route.client)], transport)
    assert any(matches(route, method, path) for method, path in transport.asked)


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.corpus], ids=lambda route: route.name
)
def test_the_parity_corpus_uses_the_route(route: Route) -> None:
    assert any(matches(route, ask.method, ask.path.partition("?")[0]) for ask in CORPUS)


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.body], ids=lambda route: route.name
)
def test_the_example_of_a_route_is_a_valid_request(route: Route) -> None:
    assert route.body is not None
    route.body.model_validate(route.example)
