"""The doctor's checks of the weights, Qdrant and the port."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from bento.doctor.__main__ import examine
from bento.doctor.checks import Finding
from tests.support.bento.doctor import CPU, Loopback, failed, machine
from tests.support.serving import free_port

# Weights


def test_a_missing_model_folder_fails_with_its_required_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODEL_NAME", "local-dir:nowhere")
    findings = examine(machine(replace(CPU, model_error="there is no such file")))
    assert failed(findings) == {"weights"}
    assert "MODEL_NAME=local-dir:nowhere" in findings["weights"].found
    assert "open_clip_config.json and weights" in findings["weights"].remedy


def test_an_unknown_model_fails_with_the_allowed_ones() -> None:
    findings = examine(machine(replace(CPU, model_error="OpenCLIP has no model x")))
    assert failed(findings) == {"weights"}
    assert "list_pretrained" in findings["weights"].remedy


def test_weights_that_the_cache_lacks_are_downloaded_if_the_hub_answers(
    loopback: Callable[..., Loopback],
) -> None:
    hub = loopback(**{"": "hub"})
    seen = replace(CPU, lacking="weights, tokenizer", source=hub.url)
    findings = examine(machine(seen))
    assert findings["weights"].status == "ok"
    assert hub.url in findings["weights"].found
    assert hub.asked == [("HEAD", "/", None)]
    hub.status["/"] = 503
    assert "answers 503" in examine(machine(seen))["weights"].found
    closed = examine(machine(replace(seen, source=f"http://127.0.0.1:{free_port()}")))
    assert failed(closed) == {"weights"}
    assert "HF_HOME" in closed["weights"].remedy
    offline = examine(machine(replace(seen, source="")))
    assert "HF_HUB_OFFLINE" in offline["weights"].found


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


def test_a_qdrant_server_that_answers_passes(
    qdrant: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = examine(machine())
    assert findings["Qdrant"] == Finding("ok", f"Qdrant 1.16.3 at {qdrant.url}")
    monkeypatch.setenv("QDRANT_HOST", "http://127.0.0.1/")
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    assert examine(machine())["Qdrant"].status == "ok"
    assert {key for _, _, key in qdrant.asked} == {None, "secret"}


def test_an_api_key_turns_on_https_as_in_the_service(
    qdrant: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json={"version": "1.17.0"})

    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    assert examine(machine(transport=httpx.MockTransport(answer)))["Qdrant"].status == "ok"
    assert all(url.startswith(f"https://127.0.0.1:{qdrant.port}/") for url in asked)
    findings = examine(machine())  # the server has no TLS
    assert failed(findings) == {"Qdrant"}
    assert "secret" not in str(findings)


@pytest.mark.parametrize(
    ("version", "ok"),
    [("1.15.9", False), ("0.11.0", False), ("1.16.0", True), ("2.0.0", True), ("1.17-dev", True)],
)
def test_a_qdrant_server_too_old_for_metadata_fails(
    qdrant: Loopback, version: str, ok: bool
) -> None:
    qdrant.answers["/"] = {"version": version}
    findings = examine(machine())
    assert failed(findings) == (set() if ok else {"Qdrant"})
    assert version in findings["Qdrant"].found


@pytest.mark.parametrize(
    ("path", "status", "found"),
    [
        ("/readyz", 503, "/readyz answers 503"),
        ("/collections", 401, "rejects calls without an API key"),
        ("/collections", 403, "rejects calls without an API key"),
    ],
)
def test_a_qdrant_server_that_rejects_calls_fails(
    qdrant: Loopback, path: str, status: int, found: str
) -> None:
    qdrant.status[path] = status
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"}
    assert found in findings["Qdrant"].found


def test_a_qdrant_server_without_an_answer_fails(
    qdrant: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_GRPC_PORT", str(free_port()))
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"}
    assert "gRPC port" in findings["Qdrant"].found
    monkeypatch.setenv("QDRANT_PORT", str(free_port()))
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"}
    assert "no Qdrant server answers" in findings["Qdrant"].found


@pytest.mark.parametrize("body", [["not an object"], {"title": "without a version"}, None])
def test_a_server_other_than_qdrant_fails(qdrant: Loopback, body: Any) -> None:
    qdrant.answers["/"] = body
    assert "no Qdrant server answers" in examine(machine())["Qdrant"].found


@pytest.mark.parametrize("host", ["ftp://qdrant", "qdrant:6333", "http://qdrant/path"])
def test_a_bad_qdrant_host_fails(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    monkeypatch.setenv("QDRANT_HOST", host)
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"}
    assert f"QDRANT_HOST={host}" in findings["Qdrant"].found


def test_the_folder_of_the_embedded_store_is_checked_and_unchanged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    monkeypatch.setenv("QDRANT_PATH", "not/yet/there")
    assert not failed(examine(machine()))
    assert list(tmp_path.iterdir()) == []
    full = examine(machine(disk_free=lambda _: 256 << 20))
    assert failed(full) == {"Qdrant"}
    assert "256 MB free" in full["Qdrant"].found
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QDRANT_PATH", "file/qdrant")
    below = examine(machine())
    assert failed(below) == {"Qdrant"}
    assert "file/qdrant is not writable" in below["Qdrant"].found


def test_workers_cannot_share_the_embedded_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    monkeypatch.setenv("WORKERS", "2")
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"}
    assert "WORKERS=2" in findings["Qdrant"].found


# The port


def test_a_port_in_use_by_another_program_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("PORT", str(other.getsockname()[1]))
        findings = examine(machine(transport=httpx.MockTransport(broken_wire)))
    assert failed(findings) == {"port"}
    assert "PORT" in findings["port"].remedy


def broken_wire(_: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("not HTTP")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_by_the_service_itself_passes(
    monkeypatch: pytest.MonkeyPatch, loopback: Callable[..., Loopback], host: str
) -> None:
    service = loopback(readyz="", info={"model_name": "ViT-L-14"})
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(
        "HTTP_PROXY", f"http://127.0.0.1:{free_port()}"
    )  # must not be used for our own port
    monkeypatch.setenv("HOST", host)
    monkeypatch.setenv("PORT", str(service.port))
    findings = examine(machine())
    assert findings["port"].status == "ok"
    assert "a running vision encoder (ViT-L-14)" in findings["port"].found
    service.status["/readyz"] = 503
    assert failed(examine(machine())) == {"port"}


def test_a_running_service_is_asked_with_the_first_key(
    monkeypatch: pytest.MonkeyPatch, loopback: Callable[..., Loopback]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/readyz":
            return httpx.Response(200)
        if request.headers.get("authorization") != "Bearer first":
            return httpx.Response(401, json={"error": {"code": "unauthorized"}})
        return httpx.Response(200, json={"model_name": "ViT-L-14"})

    monkeypatch.setenv("PORT", str(loopback().port))
    in_use = machine(transport=httpx.MockTransport(answer))
    assert failed(examine(in_use)) == {"port"}
    monkeypatch.setenv("API_KEY", "first,second")
    assert not failed(examine(in_use))


def test_an_address_of_another_machine_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOST", "192.0.2.1")
    findings = examine(machine())
    assert failed(findings) == {"port"}
    assert "HOST" in findings["port"].remedy
