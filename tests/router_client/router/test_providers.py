"""The providers and the intents: what an agent router imports. They never raise."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bento import Encoder
from router_client import VisionEncoderClient
from router_client.router.intents import handle_image_search_intent, handle_image_to_image_search
from router_client.router.providers import (
    Provider,
    VisionEncoderProvider,
    VisionRagProvider,
    build_provider_registry,
)
from router_client.router.rules import RouterRequest, RouterResponse
from tests.support.pictures import file_bytes, scene_image
from tests.support.serving import Server, free_port

Handler = Callable[[httpx.Request], httpx.Response]

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


def call(provider: Provider, **fields: Any) -> RouterResponse:
    async def ask() -> RouterResponse:
        try:
            return await provider.call(RouterRequest(**{"mode": "any", **fields}))
        finally:
            await provider.close()

    return asyncio.run(ask())


def embedder(handler: Handler) -> VisionEncoderProvider:
    transport = httpx.MockTransport(handler)
    return VisionEncoderProvider("vision_encoder", "http://encoder.test", 5, transport=transport)


class Searched:
    """A search route: keeps what it is asked, finds one picture."""

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


@pytest.fixture(scope="module")
def collection(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index ten pictures of the tenant `router` and return their folder."""
    folder = tmp_path_factory.mktemp("pictures")
    with VisionEncoderClient(server.url) as client:
        for seed in range(10):
            data = file_bytes(scene_image(seed))
            (folder / f"{seed}.png").write_bytes(data)
            client.index_image(
                f"p{seed}",
                data,
                dao_id="router",
                image_path=f"{seed}.png",
                metadata={"title": f"No. {seed}"},
                collection="router",
            )
    return folder


# The encoder's


def test_it_embeds_texts_and_pictures(server: Server, encoder: Encoder, collection: Path) -> None:
    provider = VisionEncoderProvider("vision_encoder", server.url)
    expected = encoder.encode_texts(["a star"])[0]
    data = (collection / "3.png").read_bytes()
    picture = encoder.encode_images([data])[0]
    text = {"operation": "embed_text", "text": "a star"}
    image = {"operation": "embed_image"}
    for fields, wanted in (
        ({"payload": text}, expected),
        ({"payload": {"operation": "embed_text"}, "message": "a star"}, expected),
        ({"payload": {**image, "image_path": str(collection / "3.png")}}, picture),
        ({"payload": {**image, "image_base64": base64.b64encode(data).decode()}}, picture),
    ):
        response = call(provider, **fields)
        assert response.ok, response.error
        assert response.provider_id == "vision_encoder"
        assert response.error is None
        assert response.metadata["ms"] > 0
        data_ = response.data
        assert data_ is not None
        assert (data_["dimension"], data_["normalized"]) == (128, True)
        assert data_["model"].endswith("/local")
        assert data_["embedding"] == pytest.approx(wanted, abs=1e-5)
    raw = call(provider, payload={**text, "normalize": False})
    assert raw.data is not None
    assert raw.data["normalized"] is False


def test_an_image_url_is_left_to_the_service() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("POST", "/embed/image")
        assert json.loads(request.content) == {"image_url": "http://pictures.test/a.png"}
        return httpx.Response(200, json={"embedding": [1.0]})

    payload = {"operation": "embed_image", "image_url": "http://pictures.test/a.png"}
    assert call(embedder(handler), payload=payload).data == {"embedding": [1.0]}


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({}, "payload.operation is None; allowed: embed_text, embed_image"),
        ({"operation": "embed"}, "payload.operation is 'embed'; allowed: embed_text, embed_image"),
        ({"operation": "embed_text"}, "embed_text needs a text: payload.text, or the message"),
        (
            {"operation": "embed_image"},
            "embed_image needs one of payload.image_url, image_path, image_base64",
        ),
        (
            {"operation": "embed_image", "image_url": "http://a", "image_path": "b"},
            "give only one of payload.image_url, image_path",
        ),
        ({"operation": "embed_image", "image_url": ["a"]}, "payload.image_url must be a text"),
        ({"operation": "embed_image", "image_path": "no/such.png"}, "there is no file no/such.png"),
        ({"operation": "embed_image", "image_path": "/dev/null"}, "there is no file /dev/null"),
        ({"operation": "embed_image", "image_path": "a\0b"}, "a\0b"),
    ],
)
def test_what_cannot_be_embedded_is_a_sentence(payload: dict[str, Any], said: str) -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError("nothing is to be sent")

    response = call(embedder(never), payload=payload)
    assert (response.ok, response.data, response.provider_id) == (False, None, "vision_encoder")
    assert said in (response.error or "")
    assert response.metadata["code"] == "invalid_request"


def test_a_file_too_large_to_be_a_picture_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(20_000_001)
    response = Searched().ask(payload={"image_path": str(tmp_path / "huge.png")})
    assert "has more than 20,000,000 bytes" in (response.error or "")


def test_the_services_sentence_is_passed_on() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        body = {"error": "fetches no URLs", "code": "url_refused"}
        return httpx.Response(422, json=body)

    payload = {"operation": "embed_image", "image_url": "http://a.test/a.png"}
    response = call(embedder(handler), payload=payload)
    assert (response.ok, response.error) == (False, "fetches no URLs")
    about = {k: v for k, v in response.metadata.items() if k != "ms"}
    assert about == {"code": "url_refused", "status": 422}


def test_another_services_answer_is_told_apart() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"hello": "world"})

    response = call(embedder(handler), payload={"operation": "embed_text", "text": "a"})
    assert (response.ok, response.metadata["code"]) == (False, "bad_answer")
    transport = httpx.MockTransport(handler)
    rag = VisionRagProvider("rag", "http://encoder.test", 5, transport=transport)
    response = call(rag, message="a cat")
    assert (response.ok, response.metadata["code"]) == (False, "bad_answer")


def test_a_bug_is_an_answer_too(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError("a bug")

    payload = {"operation": "embed_text", "text": "a"}
    response = call(embedder(broken), payload=payload)
    assert not response.ok
    assert response.metadata["code"] == "internal_error"
    assert "ZeroDivisionError" in caplog.text


def test_no_service_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    provider = VisionEncoderProvider("vision_encoder", url)
    response = call(provider, payload={"operation": "embed_text", "text": "a"})
    assert not response.ok
    assert f"no vision encoder answers at {url}" in (response.error or "")
    assert response.metadata["code"] == "unreachable"


def test_a_provider_outlives_an_event_loop(server: Server) -> None:
    provider = VisionEncoderProvider("vision_encoder", server.url)
    request = RouterRequest(mode="any", payload={"operation": "embed_text", "text": "a"})

    async def ask() -> bool:
        ok = (await provider.call(request)).ok
        assert await provider.health() is None
        await provider.close()
        return ok

    assert asyncio.run(ask())
    assert asyncio.run(ask())


# Search


def test_a_message_is_searched_for_among_the_tenants_pictures() -> None:
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


def test_without_a_tenant_only_the_default_one_is_searched() -> None:
    searched = Searched()
    searched.ask(message="a cat")
    searched.ask(message="a cat", dao_id=None)
    assert [body["dao_id"] for body in searched.bodies] == ["default", "default"]


def test_tenants_whose_ids_differ_by_spaces_are_not_mixed_up() -> None:
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
def test_the_answer_is_in_the_language_of_the_question(
    message: str, payload: dict[str, Any], language: str
) -> None:
    searched = Searched()
    searched.ask(message=message, payload=payload)
    assert searched.bodies[0]["language"] == language


def test_a_picture_goes_before_the_message_and_options_are_passed_on(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    searched = Searched()
    options = {"top_k": 2, "filter": {"must": []}, "collection": "c"}
    for picture in (
        {"image_url": "http://a.test/a.png"},
        {"image_path": str(tmp_path / "a.png")},
        {"image_base64": "cGljdHVyZQ=="},
    ):
        searched.ask(message="like this", payload={**options, **picture, "other": 1})
    assert [body.pop("image") for body in searched.bodies] == [
        {"image_url": "http://a.test/a.png"},
        {"image_base64": "cGljdHVyZQ=="},
        {"image_base64": "cGljdHVyZQ=="},
    ]
    assert searched.bodies == [{**options, "dao_id": "default", "language": "en"}] * 3


def test_fields_that_are_null_are_as_not_given() -> None:
    searched = Searched()
    nothing = dict.fromkeys(("top_k", "filter", "collection", "language", "image_url"))
    assert searched.ask(message="кіт", payload=nothing).ok
    assert searched.bodies == [{"text": "кіт", "dao_id": "default", "language": "uk"}]

    def handler(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content) == {"text": "кіт"}
        return httpx.Response(200, json={"embedding": [1.0]})

    payload = {"operation": "embed_text", "text": None, "normalize": None}
    assert call(embedder(handler), message="кіт", payload=payload).ok


def test_a_search_for_nothing_is_a_sentence() -> None:
    response = Searched().ask(message="  ")
    assert not response.ok
    assert "needs a query: the message, or one of payload.image_url" in (response.error or "")
    assert response.data is not None
    assert (response.data["success"], response.data["images"]) == (False, [])


def test_a_failed_search_says_so_to_the_user() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    response = call(VisionRagProvider("rag", url, 5), message="кіт")
    assert response.data is not None
    assert response.data["formatted_text"] == f"Пошук зображень не вдався: {response.error}"
    response = call(VisionRagProvider("rag", url, 5), message="a cat")
    assert response.data is not None
    assert response.data["formatted_text"] == f"Image search failed: {response.error}"


# What an agent's code calls


def test_the_registry_is_built_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_ENCODER_URL", "http://elsewhere.test:1")
    registry = build_provider_registry()
    assert {name: type(provider) for name, provider in registry.items()} == {
        "vision_encoder": VisionEncoderProvider,
        "vision_rag": VisionRagProvider,
    }
    assert {p.base_url for p in registry.values()} == {"http://elsewhere.test:1"}


def test_pictures_are_found_by_text_and_by_picture(
    server: Server, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_ENCODER_URL", server.url)
    found = asyncio.run(handle_image_search_intent("a star", "router", 4, "router"))
    assert (found["success"], found["count"], len(found["images"])) == (True, 4, 4)
    assert found["formatted_text"].startswith("Found 4 images:")
    found = asyncio.run(
        handle_image_to_image_search(collection / "6.png", "router", 2, collection_name="router")
    )
    best = found["images"][0]
    assert (best["id"], best["path"], best["metadata"]["title"]) == ("p6", "6.png", "No. 6")
    assert best["score"] == pytest.approx(1, abs=1e-3)
    assert found["count"] == 2
    others = asyncio.run(handle_image_search_intent("a star", "another", 4, "router"))
    assert (others["success"], others["count"]) == (True, 0)


def test_an_intent_that_fails_is_an_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_ENCODER_URL", server.url)
    failed = asyncio.run(handle_image_search_intent("кіт", "router", 4, "never-made"))
    assert (failed["success"], failed["count"], failed["images"]) == (False, 0, [])
    assert "never-made" in failed["error"]
    assert failed["formatted_text"] == f"Пошук зображень не вдався: {failed['error']}"
    failed = asyncio.run(handle_image_search_intent("", "router"))
    assert not failed["success"]
    failed = asyncio.run(handle_image_to_image_search("no/such.png", "router"))
    assert "there is no file no/such.png" in failed["error"]
    for query, said in (("кіт", "Пошук зображень не вдався"), ("a cat", "Image search failed")):
        failed = asyncio.run(handle_image_search_intent(query, ""))
        assert failed["formatted_text"] == f"{said}: {failed['error']}"
        assert failed["error"].startswith("dao_id: ")


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
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    failed = asyncio.run(handle_image_search_intent(*arguments))
    assert failed.keys() == {"success", "count", "images", "formatted_text", "error"}
    assert (failed["success"], failed["count"], failed["images"]) == (False, 0, [])
    assert failed["error"]
    failed = asyncio.run(handle_image_to_image_search(7, "dao"))  # type: ignore[arg-type]
    assert not failed["success"]


def test_a_service_that_hangs_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hanging(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr("router_client.router.providers.HEALTH_SECONDS", 0.2)
    transport = httpx.MockTransport(hanging)
    provider = VisionEncoderProvider("vision_encoder", "http://a.test", 60, transport=transport)
    assert "no answer from http://a.test within" in (asyncio.run(provider.health()) or "")
