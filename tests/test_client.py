"""The client: what it sends, and what it makes of every answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import httpx
import pytest

from bento import Encoder
from router_client import (
    InvalidInput,
    VisionEncoderBusy,
    VisionEncoderClient,
    VisionEncoderConnectionError,
    VisionEncoderError,
    VisionEncoderTimeout,
)

from .conftest import Server, file_bytes, scene_image


def client(handler: Callable[[httpx.Request], httpx.Response]) -> VisionEncoderClient:
    return VisionEncoderClient("http://encoder.test", transport=httpx.MockTransport(handler))


def test_it_embeds_as_the_encoder_does(server: Server, encoder: Encoder) -> None:
    data = file_bytes(scene_image(1))
    with VisionEncoderClient(server.url) as remote:
        assert remote.health()["status"] == "healthy"
        assert remote.info()["embedding_dim"] == encoder.embedding_dim
        text = encoder.encode_texts(["a star"], normalize=False)[0]
        assert remote.embed_text("a star", normalize=False) == pytest.approx(text, abs=1e-5)
        image = encoder.encode_images([data])[0]
        assert remote.embed_image_bytes(data) == pytest.approx(image, abs=1e-5)


def test_it_indexes_searches_and_deletes(server: Server) -> None:
    data = file_bytes(scene_image(2))
    with VisionEncoderClient(server.url) as remote:
        assert remote.index_image("a/b c.png", data, collection="client") == "indexed"
        assert remote.index_image("a/b c.png", data, collection="client") == "unchanged"
        image = {"image_base64": base64.b64encode(data).decode()}
        (hit,) = remote.search({"image": image, "collection": "client"})["hits"]
        assert hit["id"] == "a/b c.png"
        others = {"text": "a star", "collection": "client", "dao_id": "other"}
        found, refused = remote.search_many([others, {"text": "a", "collection": "never"}])
        assert (found["success"], found["hits"]) == (True, [])
        assert (refused["success"], refused["code"]) == (False, "collection_not_found")
        assert [held["id"] for held in remote.images("client")] == ["a/b c.png"]
        assert remote.delete_image("a/b c.png", collection="client") is True
        stats = remote.stats("client")
        assert stats["points"] == 0
        assert remote.publish("client")["generation"] == stats["generation"]
        assert remote.drop("client", "ffffffff") is False


def test_a_list_is_followed_page_by_page() -> None:
    pages = {None: (["a", "b"], "x"), "x": (["c"], None)}

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/collections/c/images"
        assert request.url.params["dao_id"] == "me"
        ids, following = pages[request.url.params.get("start")]
        return httpx.Response(200, json={"images": [{"id": i} for i in ids], "next": following})

    assert [image["id"] for image in client(handler).images("c", dao_id="me")] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidInput),
        (413, InvalidInput),
        (422, InvalidInput),
        (429, VisionEncoderBusy),
        (503, VisionEncoderBusy),
        (500, VisionEncoderError),
    ],
)
def test_an_error_carries_status_code_and_sentence(
    status: int, kind: type[VisionEncoderError]
) -> None:
    body = {"error": "what was wrong", "code": "some_code"}
    with pytest.raises(VisionEncoderError, match="what was wrong") as caught:
        client(lambda request: httpx.Response(status, json=body)).embed_text("a")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code) == (status, "some_code")


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("soon", None), (None, None)])
def test_a_busy_service_says_when_to_ask_again(header: str | None, seconds: float | None) -> None:
    headers = {"Retry-After": header} if header else {}
    answer = httpx.Response(429, json={"error": "busy", "code": "busy"}, headers=headers)
    with pytest.raises(VisionEncoderBusy) as caught:
        client(lambda request: answer).embed_text("a")
    assert caught.value.retry_after == seconds


def test_an_answer_that_is_not_the_services_is_an_error_too() -> None:
    with pytest.raises(VisionEncoderError, match="HTTP 502"):
        client(lambda request: httpx.Response(502, text="<html>")).health()


def test_a_timeout_is_told_with_its_variable() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with pytest.raises(VisionEncoderTimeout, match="VISION_ENCODER_TIMEOUT"):
        client(handler).health()


def test_no_service_is_told_with_its_address() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(VisionEncoderConnectionError, match=r"http://encoder\.test"):
        client(handler).health()


def test_the_address_and_the_timeout_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VISION_ENCODER_URL", "http://elsewhere.test:1")
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), json.loads(request.content)))
        return httpx.Response(200, json={"embedding": [1.0]})

    remote = VisionEncoderClient(transport=httpx.MockTransport(handler))
    assert remote.embed_text("a") == [1.0]
    assert seen == [("http://elsewhere.test:1/embed/text", {"text": "a", "normalize": True})]
