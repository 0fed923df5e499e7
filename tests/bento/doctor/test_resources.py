"""The doctor's checks of the weights, Qdrant and the port."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from bento.contract.errors import ModelLoadError
from bento.doctor.__main__ import examine
from bento.doctor.checks import Finding
from bento.doctor.probe import find_weights, look
from tests.support.bento.doctor import CPU, Loopback, failed, machine
from tests.support.serving import free_port

# Weights


@pytest.mark.parametrize(
    ("name", "pretrained", "said"),
    [
        ("local-dir:nowhere", "openai", "there is no nowhere/open_clip_config.json"),
        ("local-dir:", "openai", "there is no open_clip_config.json"),
        ("local-dir:empty", "openai", "empty has no weights"),
        ("ViT-B-32", "weights/mine.pt", "there is no checkpoint file weights/mine.pt"),
        ("vit-b32", "openai", "OpenCLIP knows no model vit-b32; it knows ViT-B-32"),
        ("ViT-B-32", "openia", "OpenCLIP knows no weights openia of ViT-B-32; it knows openai"),
    ],
)
def test_what_cannot_be_loaded_is_named_with_what_can(
    tmp_path: Path, name: str, pretrained: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(ModelLoadError) as error:
        find_weights(name, pretrained)
    assert str(error.value).startswith(said)


def test_a_folder_that_is_not_there_fails_with_what_it_must_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODEL_NAME", "local-dir:nowhere")
    findings = examine(machine(look=look))
    assert failed(findings) == {"weights"}
    assert "MODEL_NAME=local-dir:nowhere" in findings["weights"].found
    assert "open_clip_config.json and its weights" in findings["weights"].remedy


def test_a_model_that_open_clip_does_not_know_fails_with_what_is_allowed() -> None:
    findings = examine(machine(replace(CPU, model_error="OpenCLIP knows no model x")))
    assert failed(findings) == {"weights"}
    assert "list_pretrained" in findings["weights"].remedy


def test_a_checkpoint_file_that_is_there_will_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine.pt").write_bytes(b"weights")
    monkeypatch.setenv("MODEL_NAME", "ViT-B-32")
    monkeypatch.setenv("MODEL_PRETRAINED", "mine.pt")
    findings = examine(machine(look=look))
    assert not failed(findings)
    assert findings["weights"].found == "mine.pt"
    assert "151.3 M parameters" in findings["memory"].found


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "hf-hub:org/model"])
def test_what_is_not_in_the_cache_is_fetched_if_the_hub_answers(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    loopback: Callable[..., Loopback],
    name: str,
) -> None:
    hub = loopback(**{"": "hub"})
    monkeypatch.setenv("MODEL_NAME", name)
    monkeypatch.setenv("MODEL_PRETRAINED", "webli")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    seen = look(name, "webli", "cpu")
    assert "weights, tokenizer" in seen.lacking
    assert not hub.asked  # looking fetches nothing
    findings = examine(machine(seen))
    assert findings["weights"].status == "ok" and hub.url in findings["weights"].found
    assert hub.asked == [("HEAD", "/", None)]
    hub.status["/"] = 503
    assert "answers 503" in examine(machine(seen))["weights"].found
    closed = examine(machine(replace(seen, source=f"http://127.0.0.1:{free_port()}")))
    assert failed(closed) == {"weights"}
    assert "HF_HOME" in closed["weights"].remedy
    offline = examine(machine(replace(seen, source="")))
    assert "HF_HUB_OFFLINE" in offline["weights"].found


def test_offline_nothing_can_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    seen = look("ViT-L-14", "openai", "cpu")
    assert (seen.lacking, seen.source, seen.model_error) == ("weights", "", "")


# Qdrant


@pytest.fixture
def qdrant(monkeypatch: pytest.MonkeyPatch, loopback: Callable[..., Loopback]) -> Loopback:
    server = loopback(
        **{"": {"title": "qdrant", "version": "1.16.3"}, "readyz": "", "collections": {}}
    )
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    monkeypatch.setenv("QDRANT_HOST", "127.0.0.1")
    monkeypatch.setenv("QDRANT_PORT", str(server.port))
    monkeypatch.setenv("QDRANT_GRPC_PORT", str(server.port))
    return server


def test_a_qdrant_that_answers_will_do(qdrant: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = examine(machine())
    assert findings["Qdrant"] == Finding("ok", f"Qdrant 1.16.3 at {qdrant.url}")
    monkeypatch.setenv("QDRANT_HOST", "http://127.0.0.1/")
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    assert examine(machine())["Qdrant"].status == "ok"
    assert {key for _, _, key in qdrant.asked} == {None, "secret"}


def test_an_api_key_means_https_as_in_the_service(
    qdrant: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json={"version": "1.17.0"})

    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    assert examine(machine(transport=httpx.MockTransport(answer)))["Qdrant"].status == "ok"
    assert all(url.startswith(f"https://127.0.0.1:{qdrant.port}/") for url in asked)
    findings = examine(machine())  # the server speaks http
    assert failed(findings) == {"Qdrant"} and "secret" not in str(findings)


@pytest.mark.parametrize(
    ("version", "ok"),
    [("1.15.9", False), ("0.11.0", False), ("1.16.0", True), ("2.0.0", True), ("1.17-dev", True)],
)
def test_a_qdrant_too_old_to_keep_metadata_fails(qdrant: Loopback, version: str, ok: bool) -> None:
    qdrant.answers["/"] = {"version": version}
    findings = examine(machine())
    assert failed(findings) == (set() if ok else {"Qdrant"})
    assert version in findings["Qdrant"].found


@pytest.mark.parametrize(
    ("path", "status", "found"),
    [
        ("/readyz", 503, "/readyz answers 503"),
        ("/collections", 401, "refuses calls without an API key"),
        ("/collections", 403, "refuses calls without an API key"),
    ],
)
def test_a_qdrant_that_does_not_serve_us_fails(
    qdrant: Loopback, path: str, status: int, found: str
) -> None:
    qdrant.status[path] = status
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"}
    assert found in findings["Qdrant"].found


def test_a_qdrant_that_is_not_there_fails(
    qdrant: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_GRPC_PORT", str(free_port()))
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"} and "gRPC port" in findings["Qdrant"].found
    monkeypatch.setenv("QDRANT_PORT", str(free_port()))
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"} and "no Qdrant answers" in findings["Qdrant"].found


@pytest.mark.parametrize("body", [["no object"], {"title": "no version"}, None])
def test_what_is_no_qdrant_is_told_from_one(qdrant: Loopback, body: Any) -> None:
    qdrant.answers["/"] = body
    assert "no Qdrant answers" in examine(machine())["Qdrant"].found


@pytest.mark.parametrize("host", ["ftp://qdrant", "qdrant:6333", "http://qdrant/path"])
def test_a_qdrant_host_that_is_none_fails(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    monkeypatch.setenv("QDRANT_HOST", host)
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"}
    assert f"QDRANT_HOST={host}" in findings["Qdrant"].found


def test_the_folder_of_the_embedded_store_is_tried_and_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    monkeypatch.setenv("QDRANT_PATH", "not/yet/there")
    assert not failed(examine(machine()))
    assert list(tmp_path.iterdir()) == []
    full = examine(machine(disk_free=lambda _: 256 << 20))
    assert failed(full) == {"Qdrant"} and "256 MB free" in full["Qdrant"].found
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QDRANT_PATH", "file/qdrant")
    below = examine(machine())
    assert failed(below) == {"Qdrant"} and "cannot be written" in below["Qdrant"].found


def test_workers_cannot_share_the_embedded_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    monkeypatch.setenv("WORKERS", "2")
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"} and "WORKERS=2" in findings["Qdrant"].found


# The port


def test_a_port_that_is_taken_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("PORT", str(other.getsockname()[1]))
        findings = examine(machine(transport=httpx.MockTransport(broken_wire)))
    assert failed(findings) == {"port"}
    assert "PORT" in findings["port"].remedy


def broken_wire(_: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("not HTTP")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_the_service_itself_has_is_fine(
    monkeypatch: pytest.MonkeyPatch, loopback: Callable[..., Loopback], host: str
) -> None:
    service = loopback(readyz="", info={"model_name": "ViT-L-14"})
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")  # not for our own port
    monkeypatch.setenv("HOST", host)
    monkeypatch.setenv("PORT", str(service.port))
    findings = examine(machine())
    assert findings["port"].status == "ok"
    assert "a running vision encoder (ViT-L-14)" in findings["port"].found
    service.status["/readyz"] = 503
    assert failed(examine(machine())) == {"port"}


def test_a_service_that_wants_a_key_is_asked_with_the_first(
    monkeypatch: pytest.MonkeyPatch, loopback: Callable[..., Loopback]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/readyz":
            return httpx.Response(200)
        if request.headers.get("authorization") != "Bearer first":
            return httpx.Response(401, json={"error": {"code": "unauthorized"}})
        return httpx.Response(200, json={"model_name": "ViT-L-14"})

    monkeypatch.setenv("PORT", str(loopback().port))
    taken = machine(transport=httpx.MockTransport(answer))
    assert failed(examine(taken)) == {"port"}
    monkeypatch.setenv("API_KEY", "first,second")
    assert not failed(examine(taken))


def test_an_address_of_another_machine_cannot_be_listened_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOST", "192.0.2.1")
    findings = examine(machine())
    assert failed(findings) == {"port"}
    assert "HOST" in findings["port"].remedy
