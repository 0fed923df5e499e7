"""The reference router as an app in this process, in front of a scripted service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from router_client.router.app import create_router
from router_client.router.providers import Provider, VisionEncoderProvider, VisionRagProvider
from router_client.router.rules import RULES_FILE, load_rules
from tests.support.router_client.asking import URL, Handler, Script, ok

EMBED: dict[str, Any] = {
    "mode": "vision_embed",
    "payload": {"operation": "embed_text", "text": "a"},
}


def routed(
    handler: Handler,
    send: Callable[[httpx.AsyncClient], Any],
    rules: Path = RULES_FILE,
    api_key: str = "",
) -> httpx.Response:
    """Send one request to a router whose service is `handler`."""
    transport = httpx.MockTransport(handler)
    providers: dict[str, Provider] = {
        "vision_encoder": VisionEncoderProvider("vision_encoder", URL, 1, transport=transport),
        "vision_rag": VisionRagProvider("vision_rag", URL, 1, transport=transport),
    }
    app = create_router(load_rules(rules, providers), providers, api_key)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://router.test") as client:
            response: httpx.Response = await send(client)
            return response

    return asyncio.run(ask())


def route(handler: Handler, rules: Path = RULES_FILE, **request: Any) -> httpx.Response:
    return routed(handler, lambda client: client.post("/route", json=request), rules)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "Invalid JSON"),
        (b"[]", 400, "Input should be an object"),
        (b"{}", 400, "mode: is required"),
        (b'{"mode": ""}', 400, "mode: "),
        (b'{"mode": "a", "payload": [1]}', 400, "payload: "),
        (b'{"mode": "image_search", "dao_id": ""}', 400, "dao_id: "),
        (b'{"mode": "\xff"}', 400, "Invalid JSON"),
        (b'{"mode": "chat"}', 404, "mode 'chat'; the rules know these modes: image_search, vision"),
        (b" " * 30_000_001, 413, "30,000,000 bytes"),
    ],
)
def test_an_invalid_request_gets_an_error(content: bytes, status: int, message: str) -> None:
    response = routed(Script(), lambda client: client.post("/route", content=content))
    assert response.status_code == status
    body = response.json()
    assert body.keys() == {"ok", "provider_id", "data", "error", "metadata"}
    assert (body["ok"], body["provider_id"]) == (False, None)
    assert message in body["error"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 404), ("GET", "/route", 405)])
def test_an_unknown_route_gets_an_error_that_lists_the_routes(
    method: str, path: str, status: int
) -> None:
    response = routed(Script(), lambda client: client.request(method, path))
    assert response.status_code == status
    assert "POST /route, GET /health and GET /providers" in response.json()["error"]


def test_an_answer_that_is_not_from_the_service_is_an_error() -> None:
    page = httpx.Response(200, html="<html>Sign in</html>")
    body = route(Script(page), **EMBED).json()
    assert (body["ok"], body["metadata"]["code"]) == (False, "bad_answer")
    assert "Sign in" in body["error"]


@pytest.mark.parametrize("value", ["NaN", "1e999", '"\\ud800"'])
def test_an_answer_that_json_cannot_represent_is_an_error(value: str) -> None:
    response = route(Script(httpx.Response(200, text=f'{{"embedding": [{value}]}}')), **EMBED)
    assert response.status_code == 200
    assert (response.json()["ok"], response.json()["provider_id"]) == (False, "vision_encoder")
    assert "JSON cannot represent" in response.json()["error"]


def test_an_unreachable_service_is_an_error_and_unhealthy() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    assert routed(refuse, lambda client: client.get("/health")).json()["status"] == "healthy"
    listed = routed(refuse, lambda client: client.get("/providers")).json()["providers"]
    assert [provider["healthy"] for provider in listed] == [False, False]
    assert URL in listed[0]["error"]
    response = route(refuse, mode="image_search", message="a cat")
    assert response.status_code == 200
    body = response.json()
    assert (body["ok"], body["provider_id"]) == (False, "vision_rag")
    assert body["metadata"]["code"] == "unreachable"
    assert body["data"]["formatted_text"].startswith("Image search failed: ")


def test_custom_rules_choose_the_provider(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(
        "rules: [{id: all, priority: 1, when: {agent: [helios]}, use_provider: vision_encoder}]"
    )
    request = {**EMBED, "mode": "anything"}
    chosen = route(Script(ok()), rules, **request, agent="helios").json()
    assert (chosen["ok"], chosen["metadata"]["rule"]) == (True, "all")
    assert route(Script(), rules, **request).status_code == 404


@pytest.mark.parametrize(
    ("sent", "status"),
    [("", 401), ("Bearer k", 401), ("Bearer key2", 401), ("Basic key", 401), ("bearer key", 200)],
)
def test_a_router_with_a_key_requires_it_except_for_its_health(sent: str, status: int) -> None:
    headers = {"Authorization": sent} if sent else {}

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.post("/route", json=EMBED, headers=headers),
            await client.get("/providers", headers=headers),
            await client.get("/health"),
        ]

    script = Script(*[ok()] * 3)
    answers: Any = routed(script, ask, api_key="key")
    assert [answer.status_code for answer in answers] == [status, status, 200]
    if status == 401:
        assert not script.requests
        assert answers[0].headers["WWW-Authenticate"] == "Bearer"
        assert "API key is missing or wrong" in answers[0].json()["error"]
