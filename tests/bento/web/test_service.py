"""The routes that describe the service, its log and its metrics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from bento import Encoder
from bento.version import VERSION
from tests.support.paths import BUNDLED, ROOT
from tests.support.serving import Server, logged

pytestmark = pytest.mark.service


def test_health_names_the_device_and_the_model(http: httpx.Client) -> None:
    answer = http.get("/health").json()
    assert answer["status"] == "healthy"
    assert answer["device"] == "cpu"
    assert answer["model"] == f"{BUNDLED}/local"
    assert answer.keys() == {"status", "device", "model", "cuda_available", "gpu_name"}


def test_info_describes_the_model_and_the_settings(http: httpx.Client, encoder: Encoder) -> None:
    info = http.get("/info").json()
    assert info["model_name"] == BUNDLED
    assert info["embedding_dim"] == encoder.embedding_dim
    assert info["context_length"] == 128
    assert info["weights_digest"] == encoder.weights_digest
    assert info["normalize_default"] is True
    assert info["qdrant_enabled"] is True
    assert info["collection"] == "daarion_images"
    assert info["version"] == VERSION


def test_a_request_id_is_kept_or_made_and_logged(http: httpx.Client, server: Server) -> None:
    given = http.get("/health", headers={"X-Request-ID": "mine-123"})
    assert given.headers["X-Request-ID"] == "mine-123"
    bad = http.post("/embed/text", json={"text": ""}, headers={"X-Request-ID": "bad\tid"})
    made = bad.headers["X-Request-ID"]
    assert len(made) == 32
    assert logged(server, request_id="mine-123")["path"] == "/health"
    assert logged(server, request_id=made)["status"] == 400
    assert logged(server, request_id=made)["method"] == "POST"


def test_the_start_is_logged_in_one_line(server: Server, encoder: Encoder) -> None:
    loaded = f"Model loaded successfully. Embedding dimension: {encoder.embedding_dim}"
    start = logged(server, message=loaded)
    assert start["model"] == f"{BUNDLED}/local"
    assert (start["device"], start["text"], start["image"]) == ("cpu", "float32", "float32")
    assert start["dimension"] == encoder.embedding_dim
    assert start["store"].startswith("embedded at")
    assert start["url"] == server.url


def test_an_invalid_request_logs_no_traceback(http: httpx.Client, server: Server) -> None:
    http.post("/embed/text", json={"text": ""})
    http.post("/embed/image", json={"image_base64": "@@"})
    assert "Traceback" not in server.log.read_text()


def test_the_docs_are_complete_and_load_nothing_from_other_hosts(http: httpx.Client) -> None:
    assert http.get("/", follow_redirects=True).url.path == "/ui"
    page = http.get("/docs")
    assert "//" not in page.text.replace("<!DOCTYPE", "")
    for asset in ("/static_content/swagger-ui.css", "/static_content/swagger-ui-bundle.js"):
        assert f'"{asset[1:]}"' in page.text
        assert http.get(asset).status_code == 200
    document = http.get("/openapi.json")
    assert "://" not in document.text.replace("http(s)://", "")
    paths = document.json()["paths"]
    for item in paths.values():
        for operation in item.values():
            assert operation["summary"]
            if "requestBody" in operation:  # BentoML would add errors of its own
                assert operation["responses"].keys() == {"200", "default"}
    documented = {(m.upper(), path) for path, item in paths.items() for m in item}
    assert {
        ("GET", "/health"),
        ("GET", "/info"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
        ("POST", "/embed/text"),
        ("POST", "/embed/texts"),
        ("POST", "/embed/image"),
        ("POST", "/embed/image/upload"),
        ("POST", "/embed/images"),
        ("POST", "/v1/embeddings"),
        ("POST", "/rank"),
        ("POST", "/images"),
        ("PATCH", "/images/{id}"),
        ("DELETE", "/images/{id}"),
        ("POST", "/search"),
        ("GET", "/collections/{name}"),
        ("GET", "/collections/{name}/images"),
        ("POST", "/collections/{name}/publish"),
        ("DELETE", "/collections/{name}/generations/{generation}"),
        ("GET", "/images/{id}/thumbnail"),
        ("POST", "/search/batch"),
        ("GET", "/ui"),
    } <= documented


def test_metrics_count_by_declared_routes(http: httpx.Client) -> None:
    http.post("/embed/text", json={"text": "a"})
    http.post("/embed/text", content=b"a", headers={"Content-Type": "text/plain"})
    http.post("/embed/image/upload", files={"file": b"text"})
    http.post("/v1/embeddings", json={})
    http.delete("/images/some/long/name")
    http.get("/nowhere/at/all")
    text = http.get("/metrics").text
    for labels in (
        'code="",method="POST",route="/embed/text",status="200"',
        'code="unsupported_media_type",method="POST",route="/embed/text",status="415"',
        'code="not_an_image",method="POST",route="/embed/image/upload",status="415"',
        'code="invalid_request",method="POST",route="/v1/embeddings",status="400"',
        'code="",method="DELETE",route="/images/{id:path}",status="200"',
        'code="not_found",method="GET",route="other",status="404"',
    ):
        assert f"vision_encoder_requests_total{{{labels}}}" in text
    assert "some/long/name" not in text
    assert "nowhere" not in text
    assert "process_resident_memory_bytes" in text
    assert 'vision_encoder_stage_seconds_count{stage="respond",tower="text"}' in text


def worker(code: str, **environment: str) -> str:
    """Run code in a process of its own, with `metrics`, and return what it prints."""
    program = f"from bento.web.metrics import Metrics; metrics = Metrics(workers=2); {code}"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_workers_share_their_metrics_without_the_gauges_of_dead_ones(tmp_path: Path) -> None:
    shared = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    state = "metrics.tower('text').accepted({}); store = metrics.store('a'); store.points({})"
    call = "store.called('query', 0.01, answered={})"
    worker(f"{state.format(5, 1)}; {call.format(True)}", **shared)
    told = worker(
        f"{state.format(2, 7)}; {call.format(False)}; print(metrics.exposition().decode())",
        **shared,
    ).splitlines()
    assert 'vision_encoder_queue_length{tower="text"} 2.0' in told
    assert 'vision_encoder_store_seconds_count{operation="query"} 2.0' in told
    assert 'vision_encoder_store_points{collection="a"} 7.0' in told
    assert 'vision_encoder_store_up{collection="a"} 0.0' in told


def test_the_model_and_the_time_of_its_start_are_metrics() -> None:
    (seconds, info) = worker(
        "import time; time.sleep(0.5); "
        "metrics.loaded('a/b', 'd', {'text': 'float32', 'image': 'bfloat16'}, 'cpu'); "
        "print(*(line for line in metrics.exposition().decode().splitlines() "
        "if line.startswith(('vision_encoder_model', 'vision_encoder_cold'))), sep='\\n')"
    ).splitlines()[::-1]
    assert info == (
        'vision_encoder_model_info{device="cpu",digest="d",image_dtype="bfloat16",model="a/b",'
        'text_dtype="float32"} 1.0'
    )
    assert 0.5 < float(seconds.split()[1]) < 30
