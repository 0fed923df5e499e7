"""The providers and the intents against a running service."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from bento import Encoder
from router_client import VisionEncoderClient
from router_client.router.intents import handle_image_search_intent, handle_image_to_image_search
from router_client.router.providers import VisionEncoderProvider
from router_client.router.rules import RouterRequest
from tests.support.pictures import file_bytes, scene_image
from tests.support.router_client.asking import call_provider as call
from tests.support.serving import Server

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def collection(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index ten images for the tenant `router` and return their folder."""
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


def test_texts_and_images_are_embedded(server: Server, encoder: Encoder, collection: Path) -> None:
    provider = VisionEncoderProvider("vision_encoder", server.url)
    expected = encoder.encode_texts(["a star"])[0]
    data = (collection / "3.png").read_bytes()
    image_row = encoder.encode_images([data])[0]
    text = {"operation": "embed_text", "text": "a star"}
    image = {"operation": "embed_image"}
    for fields, wanted in (
        ({"payload": text}, expected),
        ({"payload": {"operation": "embed_text"}, "message": "a star"}, expected),
        ({"payload": {**image, "image_path": str(collection / "3.png")}}, image_row),
        ({"payload": {**image, "image_base64": base64.b64encode(data).decode()}}, image_row),
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


def test_a_provider_works_in_several_event_loops(server: Server) -> None:
    provider = VisionEncoderProvider("vision_encoder", server.url)
    request = RouterRequest(mode="any", payload={"operation": "embed_text", "text": "a"})

    async def ask() -> bool:
        ok = (await provider.call(request)).ok
        assert await provider.health() is None
        await provider.close()
        return ok

    assert asyncio.run(ask())
    assert asyncio.run(ask())


def test_images_are_found_by_text_and_by_image(
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


def test_an_intent_returns_errors(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_ENCODER_URL", server.url)
    failed = asyncio.run(handle_image_search_intent("кіт", "router", 4, "never-made"))
    assert (failed["success"], failed["count"], failed["images"]) == (False, 0, [])
    assert "never-made" in failed["error"]
    assert failed["formatted_text"] == f"Пошук зображень не вдався: {failed['error']}"
    failed = asyncio.run(handle_image_search_intent("", "router"))
    assert not failed["success"]
    failed = asyncio.run(handle_image_to_image_search("no/such.png", "router"))
    assert "no/such.png" in failed["error"]
    for query, said in (("кіт", "Пошук зображень не вдався"), ("a cat", "Image search failed")):
        failed = asyncio.run(handle_image_search_intent(query, ""))
        assert failed["formatted_text"] == f"{said}: {failed['error']}"
        assert failed["error"].startswith("dao_id: ")
