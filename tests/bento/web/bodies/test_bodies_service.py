"""A service rejects JSON bodies with too many values, and large metadata, and keeps answering."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.serving import Server, serving

pytestmark = pytest.mark.service

SMALL = b"1," * 1_000_000 + b"1]}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("bodies"), QDRANT_ENABLED="true") as server:
        yield server


@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("/embed/text", b'{"text":['),
        ("/embed/texts", b'{"texts":['),
        ("/v1/embeddings", b'{"input":['),
        ("/search", b'{"weights":['),
        ("/search/batch", b'{"searches":['),
        ("/images", b'{"duplicates":['),
    ],
)
def test_a_body_of_many_small_values_is_413(server: Server, path: str, start: bytes) -> None:
    with server.client() as http:
        headers = {"Content-Type": "application/json"}
        answer = http.post(path, content=start + SMALL, headers=headers)
        assert answer.status_code == 413
        error = answer.json()["error"]
        assert "the limit of this route" in (error["message"] if "/v1" in path else error)


def test_large_metadata_is_400_and_names_the_limit(server: Server) -> None:
    with server.client() as http:
        body = {"metadata": {"note": "é" * 32_700}}
        assert http.patch("/images/none", json=body).json()["updated"] is False
        answer = http.patch("/images/none", json={"metadata": {"note": "é" * 32_768}})
        assert answer.status_code == 400
        assert "at most 65,536 are allowed" in answer.json()["error"]


def test_a_text_may_have_the_bytes_of_the_longest_text(server: Server) -> None:
    with server.client() as http:
        headers = {"Content-Type": "application/json"}
        longest = b'{"text":"' + b"\\ud83d\\ude00" * 10_000 + b'"}'
        assert http.post("/embed/text", content=longest, headers=headers).status_code == 200
        answer = http.post("/embed/text", content=b" " * 2000 + longest, headers=headers)
        assert answer.status_code == 413
        assert "the limit of this route, 121,000 bytes" in answer.json()["error"]
