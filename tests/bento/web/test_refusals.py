"""Requests that the service rejects: the status, the code and the fields that the error names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.bento.asking import JSON, PNG
from tests.support.bento.problems import problem
from tests.support.paths import BUNDLED
from tests.support.pictures import encoded

pytestmark = pytest.mark.service

# route, body, status, code, and a name that the message contains
REFUSED: list[tuple[str, Any, int, str, str]] = [
    ("/embed/text", {}, 400, "invalid_request", "text"),
    ("/embed/text", {"text": ""}, 400, "invalid_request", "text"),
    ("/embed/text", {"text": "  "}, 400, "invalid_request", "text"),
    ("/embed/text", {"text": 7}, 400, "invalid_request", "text"),
    ("/embed/text", {"text": ["a"]}, 400, "invalid_request", "text"),
    ("/embed/text", {"text": "x" * 10_001}, 400, "invalid_request", "text"),
    ("/embed/text", {"text": "a", "normalise": True}, 400, "invalid_request", "normalise"),
    ("/embed/text", {"text": "a", "normalize": "yes"}, 400, "invalid_request", "normalize"),
    ("/embed/text", [], 400, "invalid_request", ""),
    ("/embed/image", {}, 400, "invalid_request", ""),
    ("/embed/image", {"image_base64": PNG, "image_url": "http://a/b"}, 400, "invalid_request", ""),
    ("/embed/image", {"image_base64": "@@"}, 400, "invalid_request", ""),
    ("/embed/image", {"image_base64": ""}, 400, "invalid_request", ""),
    ("/embed/image", {"image_base64": "data:image/png,abc"}, 400, "invalid_request", ""),
    ("/embed/image", {"image_base64": PNG[:200]}, 400, "broken_image", ""),
    ("/embed/image", {"image_base64": encoded(b"hello")}, 415, "not_an_image", ""),
    ("/embed/image", {"image_url": "http://127.0.0.1/a"}, 422, "url_refused", "ALLOW_IMAGE_URLS"),
    ("/embed/texts", {"texts": []}, 400, "invalid_request", "texts"),
    ("/embed/texts", {"texts": "a"}, 400, "invalid_request", ""),
    ("/embed/texts", {"texts": ["a", ""]}, 400, "invalid_request", "texts.1"),
    ("/embed/texts", {"texts": ["a"] * 10_000}, 413, "too_large", ""),
    ("/rank", {"image": {"image_base64": PNG}, "texts": []}, 400, "invalid_request", "texts"),
    ("/rank", {"texts": ["a"]}, 400, "invalid_request", "image"),
    ("/rank", {"image": {"image_base64": PNG[:200]}, "texts": ["a"]}, 400, "broken_image", ""),
    ("/v1/embeddings", {"model": "gpt", "input": "a"}, 404, "model_not_found", BUNDLED),
    ("/v1/embeddings", {"input": "a"}, 400, "invalid_request", "model"),
    ("/v1/embeddings", {"model": BUNDLED, "input": []}, 400, "invalid_request", "input"),
    ("/v1/embeddings", {"model": BUNDLED, "input": [1, 2]}, 400, "invalid_request", ""),
    ("/v1/embeddings", {"model": BUNDLED, "input": [[1]]}, 400, "invalid_request", ""),
    ("/v1/embeddings", {"model": BUNDLED, "input": [None]}, 400, "invalid_request", "input"),
    ("/v1/embeddings", {"model": BUNDLED, "input": [{}]}, 400, "invalid_request", ""),
    ("/v1/embeddings", {"model": BUNDLED, "input": ["a", " "]}, 400, "invalid_request", "input"),
    ("/v1/embeddings", {"model": BUNDLED, "input": ["a"] * 1001}, 413, "too_large", ""),
    ("/v1/embeddings", {"model": BUNDLED, "input": [{}] * 1001}, 413, "too_large", ""),
    (
        "/v1/embeddings",
        {"model": BUNDLED, "input": ["a", "data:image/png;base64,AAAA"]},
        400,
        "invalid_request",
        "input",
    ),
    (
        "/v1/embeddings",
        {"model": BUNDLED, "input": [{"image": "http://127.0.0.1/a"}]},
        422,
        "url_refused",
        "ALLOW_IMAGE_URLS",
    ),
    (
        "/v1/embeddings",
        {"model": BUNDLED, "input": "a", "dimensions": 129},
        400,
        "invalid_request",
        "",
    ),
    (
        "/v1/embeddings",
        {"model": BUNDLED, "input": "a", "encoding_format": "hex"},
        400,
        "invalid_request",
        "",
    ),
    ("/search", {}, 400, "invalid_request", ""),
    ("/search", {"text": ["a", ""]}, 400, "invalid_request", "text.1"),
    ("/search", {"image": {"id": "1", "image_url": "x"}}, 400, "invalid_request", ""),
    ("/search", {"text": "a", "weights": [1, 1]}, 400, "invalid_request", ""),
    ("/search", {"text": "a", "weights": [0]}, 400, "invalid_request", ""),
    ("/search", {"text": "a", "filter": {"most": []}}, 400, "invalid_request", ""),
    ("/search", {"text": "a", "group_by": "a b"}, 400, "invalid_request", "group_by"),
    ("/search", {"text": "a", "diversity": 2}, 400, "invalid_request", "diversity"),
    (
        "/search",
        {"text": "a", "diversity": 0.5, "group_by": "tags"},
        400,
        "invalid_request",
        "",
    ),
    ("/search", {"image": {"image_base64": PNG[:80]}}, 400, "broken_image", ""),
    ("/search", {"text": "a", "top_k": 0}, 400, "invalid_request", "top_k"),
    ("/search", {"text": "a", "collection": "../x"}, 400, "invalid_request", "collection"),
    ("/images", {"image_base64": PNG}, 400, "invalid_request", "id"),
    (
        "/images",
        {"id": "1", "image_base64": PNG, "metadata": {"dao_id": "x"}},
        400,
        "invalid_request",
        "dao_id",
    ),
]


@pytest.mark.parametrize(("route", "body", "status", "code", "named"), REFUSED)
def test_invalid_input_is_rejected(
    http: httpx.Client, route: str, body: Any, status: int, code: str, named: str
) -> None:
    response = http.post(route, json=body)
    assert (response.status_code, problem(response)[0]) == (status, code), response.text
    assert named in problem(response)[1]


@pytest.mark.parametrize(
    ("request_", "status", "named"),
    [
        ({"files": [("file", b"x")]}, 400, "file"),
        ({"files": {"files": (None, "text")}}, 400, "files"),
        ({"data": {"files": "text"}}, 415, "multipart/form-data"),
        ({"json": {}}, 415, "multipart/form-data"),
        ({"files": [("files", b"x")], "data": {"normalize": "maybe"}}, 400, "normalize"),
        ({"files": [("files", b"x")] * 1001}, 413, "1,000"),
    ],
)
def test_an_invalid_upload_of_several_images_is_rejected(
    http: httpx.Client, request_: dict[str, Any], status: int, named: str
) -> None:
    response = http.post("/embed/images", **request_)
    assert response.status_code == status, response.text
    assert named in response.json()["error"]


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"null", b'{"text": "\\ud800"}'])
def test_invalid_json_is_rejected(http: httpx.Client, content: bytes) -> None:
    response = http.post(
        "/embed/text", content=content, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400, response.text
    assert response.json()["code"] == "invalid_request"


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/vnd.bentoml+pickle", ""],
)
def test_another_content_type_is_rejected(http: httpx.Client, media_type: str) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    response = http.post("/embed/text", content=b'{"text": "a"}', headers=headers)
    assert response.status_code == 415
    assert response.json()["code"] == "unsupported_media_type"
    assert "application/json" in response.json()["error"]


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"files": {"picture": b"x"}}, 400, "invalid_request"),
        ({"files": {"file": (None, "text")}}, 400, "invalid_request"),
        ({"data": {"file": "text"}}, 415, "unsupported_media_type"),
        ({"json": {}}, 415, "unsupported_media_type"),
        ({"files": {"file": b""}}, 400, "invalid_request"),
        ({"files": {"file": b"text"}}, 415, "not_an_image"),
        ({"files": {"file": b"x"}, "data": {"normalize": "maybe"}}, 400, "invalid_request"),
        ({"files": {"file": b"x"}, "data": {"other": "1"}}, 400, "invalid_request"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400, None),
    ],
)
def test_an_invalid_upload_is_rejected(
    http: httpx.Client, request_: dict[str, Any], status: int, code: str | None
) -> None:
    response = http.post("/embed/image/upload", **request_)
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error", "code"}
    assert response.json()["code"] == (code or "invalid_request")


def test_a_body_over_the_limit_is_rejected_with_and_without_its_length(http: httpx.Client) -> None:
    size = 65_000_000
    with_length = http.post("/embed/text", content=b"x" * size, headers=JSON)
    assert (with_length.status_code, with_length.json()["code"]) == (413, "too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(65):
            yield b" " * 1_000_000

    without = http.post("/embed/text", content=chunks(), headers=JSON)
    assert (without.status_code, without.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/embed/text", 405, "method_not_allowed"),
        ("PUT", "/health", 405, "method_not_allowed"),
    ],
)
def test_unknown_routes_and_methods_have_the_same_errors(
    http: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert response.json()["code"] == code
