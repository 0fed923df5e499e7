"""The providers and the intents: their requests, and their errors, which they never raise."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from router_client.router.intents import handle_image_search_intent, handle_image_to_image_search
from router_client.router.providers import (
    VisionEncoderProvider,
    VisionRagProvider,
    build_provider_registry,
)
from router_client.router.rules import RouterResponse
from tests.support.router_client.asking import Handler
from tests.support.router_client.asking import call_provider as call
from tests.support.serving import free_port

FOUND = {
    "success": True,
    "hits": [{"id": "7", "score": 0.5, "path": "a.png", "payload": {"title": "A"}, "group": None}],
    "count": 1,
    "next_offset": None,
    "model": "m",
    "formatted_text": "Знайдено 1 зображення:",
    "error": None,
    "code": None,
}


def embedder(handler: Handler) -> VisionEncoderProvider:
    transport = httpx.MockTransport(handler)
    return VisionEncoderProvider("vision_encoder", "http://encoder.test", 5, transport=transport)


class Searched:
    """A search route that records the bodies of its requests and always finds one image."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/search"
        self.bodies.append(json.loads(request.content))
        return httpx.Response(200, json=FOUND)

    def ask(self, **fields: Any) -> RouterResponse:
        transport = httpx.MockTransport(self)
        return call(
            VisionRagProvider("rag", "http://encoder.test", 5, transport=transport), **fields
        )


# Embedding


def test_the_service_fetches_image_urls() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("POST", "/embed/image")
        assert json.loads(request.content) == {"image_url": "http://pictures.test/a.png"}
        return httpx.Response(200, json={"embedding": [1.0]})

    payload = {"operation": "embed_image", "image_url": "http://pictures.test/a.png"}
    assert call(embedder(handler), payload=payload).data == {"embedding": [1.0]}


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "payload.operation is None; it must be embed_text or embed_image"),
        ({"operation": "embed"}, "'embed'"),
        ({"operation": "embed_text"}, "embed_text needs a text in payload.text or in the message"),
        (
            {"operation": "embed_image"},
            "in payload.image_url, payload.image_path or payload.image_base64",
        ),
        (
            {"operation": "embed_image", "image_url": "http://a", "image_path": "b"},
            "several images; keep one of payload.image_url or payload.image_path",
        ),
        (
            {"operation": "embed_image", "image_url": ["a"]},
            "payload.image_url must be a string, not list",
        ),
        ({"operation": "embed_image", "image_path": "no/such.png"}, "no/such.png is not a file"),
        ({"operation": "embed_image", "image_path": "/dev/null"}, "/dev/null"),
        ({"operation": "embed_image", "image_path": "a\0b"}, "a\0b"),
    ],
)
def test_an_invalid_request_is_not_sent(payload: dict[str, Any], message: str) -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError("the provider sent an invalid request")

    response = call(embedder(never), payload=payload)
    assert (response.ok, response.data, response.provider_id) == (False, None, "vision_encoder")
    assert message in (response.error or "")
    assert response.metadata["code"] == "invalid_request"


def test_a_file_above_the_size_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(20_000_001)
    response = Searched().ask(payload={"image_path": str(tmp_path / "huge.png")})
    assert "has more than 20,000,000 bytes" in (response.error or "")


def test_the_error_of_the_service_is_passed_on() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        body = {"error": "fetches no URLs", "code": "url_refused"}
        return httpx.Response(422, json=body)

    payload = {"operation": "embed_image", "image_url": "http://a.test/a.png"}
    response = call(embedder(handler), payload=payload)
    assert (response.ok, response.error) == (False, "fetches no URLs")
    metadata = {k: v for k, v in response.metadata.items() if k != "ms"}
    assert metadata == {"code": "url_refused", "status": 422}


def test_an_answer_of_another_service_is_an_error() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"hello": "world"})

    response = call(embedder(handler), payload={"operation": "embed_text", "text": "a"})
    assert (response.ok, response.metadata["code"]) == (False, "bad_answer")
    transport = httpx.MockTransport(handler)
    rag = VisionRagProvider("rag", "http://encoder.test", 5, transport=transport)
    response = call(rag, message="a cat")
    assert (response.ok, response.metadata["code"]) == (False, "bad_answer")


def test_an_unexpected_exception_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError("a bug")

    payload = {"operation": "embed_text", "text": "a"}
    response = call(embedder(broken), payload=payload)
    assert not response.ok
    assert response.metadata["code"] == "internal_error"
    assert "ZeroDivisionError" in caplog.text


def test_an_unreachable_service_is_an_error() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    provider = VisionEncoderProvider("vision_encoder", url, timeout=0.1)
    response = call(provider, payload={"operation": "embed_text", "text": "a"})
    assert not response.ok
    assert url in (response.error or "")
    assert response.metadata["code"] == "unreachable"


# Search


def test_a_search_covers_only_the_tenants_images() -> None:
    searched = Searched()
    response = searched.ask(message=" рудий кіт ", dao_id="my-dao", payload={"top_k": 3})
    assert response.ok
    assert response.data == {
        "success": True,
        "count": 1,
        "images": [{"id": "7", "score": 0.5, "path": "a.png", "metadata": {"title": "A"}}],
        "formatted_text": "Знайдено 1 зображення:",
    }
    assert searched.bodies == [
        {"text": "рудий кіт", "dao_id": "my-dao", "top_k": 3, "language": "uk"}
    ]


def test_a_search_without_a_tenant_covers_only_the_default_one() -> None:
    searched = Searched()
    searched.ask(message="a cat")
    searched.ask(message="a cat", dao_id=None)
    assert [body["dao_id"] for body in searched.bodies] == ["default", "default"]


def test_tenants_whose_ids_differ_by_spaces_are_kept_apart() -> None:
    searched = Searched()
    tenants = ["acme", "acme ", " acme", " ", "\n"]
    for tenant in tenants:
        assert searched.ask(message="a cat", dao_id=tenant).ok
    assert [body["dao_id"] for body in searched.bodies] == tenants


@pytest.mark.parametrize(
    ("message", "payload", "language"),
    [
        ("a red cat", {}, "en"),
        ("рудий кіт", {}, "uk"),
        ("кіт iPhone", {}, "uk"),
        ("café!", {}, "en"),
        ("123", {}, "uk"),
        ("рудий кіт", {"language": "en"}, "en"),
    ],
)
def test_the_language_of_the_answer_follows_the_message(
    message: str, payload: dict[str, Any], language: str
) -> None:
    searched = Searched()
    searched.ask(message=message, payload=payload)
    assert searched.bodies[0]["language"] == language


def test_an_image_takes_precedence_and_options_are_passed_on(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"an image")
    searched = Searched()
    options = {"top_k": 2, "filter": {"must": []}, "collection": "c"}
    for image in (
        {"image_url": "http://a.test/a.png"},
        {"image_path": str(tmp_path / "a.png")},
        {"image_base64": "YW4gaW1hZ2U="},
    ):
        searched.ask(message="like this", payload={**options, **image, "other": 1})
    assert [body.pop("image") for body in searched.bodies] == [
        {"image_url": "http://a.test/a.png"},
        {"image_base64": "YW4gaW1hZ2U="},
        {"image_base64": "YW4gaW1hZ2U="},
    ]
    assert searched.bodies == [{**options, "dao_id": "default", "language": "en"}] * 3


def test_null_fields_count_as_missing() -> None:
    searched = Searched()
    nothing = dict.fromkeys(("top_k", "filter", "collection", "language", "image_url"))
    assert searched.ask(message="кіт", payload=nothing).ok
    assert searched.bodies == [{"text": "кіт", "dao_id": "default", "language": "uk"}]

    def handler(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content) == {"text": "кіт"}
        return httpx.Response(200, json={"embedding": [1.0]})

    payload = {"operation": "embed_text", "text": None, "normalize": None}
    assert call(embedder(handler), message="кіт", payload=payload).ok


def test_a_search_without_a_query_is_an_error() -> None:
    response = Searched().ask(message="  ")
    assert not response.ok
    assert "needs a query: a message, or an image in payload.image_url" in (response.error or "")
    assert response.data is not None
    assert (response.data["success"], response.data["images"]) == (False, [])


def test_a_failed_search_is_explained_to_the_user() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    response = call(VisionRagProvider("rag", url, 0.1), message="кіт")
    assert response.data is not None
    assert response.data["formatted_text"] == f"Пошук зображень не вдався: {response.error}"
    response = call(VisionRagProvider("rag", url, 0.1), message="a cat")
    assert response.data is not None
    assert response.data["formatted_text"] == f"Image search failed: {response.error}"


# Registry and intents


def test_the_registry_uses_the_address_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VISION_ENCODER_URL", "http://elsewhere.test:1")
    registry = build_provider_registry()
    assert {name: type(provider) for name, provider in registry.items()} == {
        "vision_encoder": VisionEncoderProvider,
        "vision_rag": VisionRagProvider,
    }
    assert {p.base_url for p in registry.values()} == {"http://elsewhere.test:1"}


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        ({"VISION_ENCODER_URL": "gpu-host"}, ("a", "b")),
        ({"VISION_ENCODER_URL": "http://[::1"}, ("a", "b")),
        ({"VISION_ENCODER_TIMEOUT": "abc"}, ("a", "b")),
        ({"API_KEY": "ключ"}, ("a", "b")),
        ({}, (5, "b")),
        ({}, ("a", 5)),
        ({}, ("\ud800", "b")),
    ],
)
def test_an_intent_never_raises(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], arguments: tuple[Any, Any]
) -> None:
    monkeypatch.setenv("VISION_ENCODER_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("VISION_ENCODER_TIMEOUT", "0.1")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    failed = asyncio.run(handle_image_search_intent(*arguments))
    assert failed.keys() == {"success", "count", "images", "formatted_text", "error"}
    assert (failed["success"], failed["count"], failed["images"]) == (False, 0, [])
    assert failed["error"]
    failed = asyncio.run(handle_image_to_image_search(7, "dao"))  # type: ignore[arg-type]
    assert not failed["success"]


def test_the_health_check_of_a_hanging_service_ends() -> None:
    async def hanging(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError

    transport = httpx.MockTransport(hanging)
    provider = VisionEncoderProvider(
        "vision_encoder", "http://a.test", 60, transport=transport, health_seconds=0.1
    )
    assert asyncio.run(provider.health()) == "http://a.test did not answer within 0.1 s"
