"""The service as a process: start, failed start, idle memory and stop."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from bento.web.logs import configure_logs
from rag.store.edge.store import EdgeStore
from rag.store.interface import ModelIdentity
from tests.support.bento.asking import PNG
from tests.support.paths import BUNDLED, ROOT
from tests.support.serving import Server, free_port, serving

pytestmark = pytest.mark.service

IDLE_BYTES = 1.2e9  # allowed for all processes of the idle service


def test_livez_answers_while_the_model_loads_and_readyz_waits(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    environment = {**os.environ, "MODEL_NAME": BUNDLED, "PORT": str(port), "DEVICE": "cpu"}
    environment["BENTOML_DO_NOT_TRACK"] = "True"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", "service:VisionEncoder"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        seen = set()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and (200, 200, 200) not in seen:
            try:
                seen.add(
                    tuple(
                        httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10).status_code
                        for path in ("/livez", "/health", "/readyz")
                    )
                )
            except httpx.TransportError:
                time.sleep(0.02)
        assert (200, 503, 503) in seen
        assert (200, 200, 200) in seen
        # QDRANT_ENABLED is not set
        refused = httpx.post(f"http://127.0.0.1:{port}/search", json={"text": "a"})
        assert (refused.status_code, refused.json()["code"]) == (503, "search_disabled")
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        while_loading = 'code="not_ready",method="GET",route="/health",status="503"'
        assert f"vision_encoder_requests_total{{{while_loading}}}" in metrics
        assert "vision_encoder_store_up{" not in metrics
    finally:
        process.terminate()
        process.wait(30)


def test_in_a_terminal_the_start_ends_with_one_readable_line(tmp_path: Path) -> None:
    port = free_port()  # --port overrides PORT
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "bentoml", "serve", "service:VisionEncoder", "--port", str(port)],
        cwd=ROOT,
        env={
            **os.environ,
            "BENTOML_DO_NOT_TRACK": "True",
            "MODEL_NAME": BUNDLED,
            "DEVICE": "cpu",
            "DTYPE": "float32",
            "PORT": str(free_port()),
            "QDRANT_ENABLED": "true",
            "QDRANT_PATH": str(tmp_path),
        },
        stdout=inner,
        stderr=inner,
    )
    os.close(inner)
    try:
        with os.fdopen(terminal, encoding="utf-8", errors="replace") as lines:
            started = [line.rstrip() for line in _until("Model loaded", lines)]
            url = f"http://127.0.0.1:{port}"
            httpx.get(f"{url}/%0a%1b[31mred")
            request = next(lines).rstrip()
    finally:
        process.terminate()
        process.wait(30)
    assert all(re.match(r"\d\d:\d\d:\d\d (INFO|WARNING) [A-Z]", line) for line in started)
    assert started[0].endswith(f"listening on {url} (Press CTRL+C to quit)")
    assert started[-1][9:] == (
        f"INFO Model loaded successfully: {BUNDLED}/local on cpu (text float32, image float32), "
        f"store: embedded at {tmp_path}, search page: {url}/ui"
    )
    assert " method=GET path='/\\n\\x1b[31mred' client=127.0.0.1 status=404 ms=" in request


@pytest.mark.parametrize(
    ("log_format", "terminal", "text"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("text", False, True),
        ("json", True, False),
    ],
)
def test_log_format_and_the_terminal_decide_the_format(
    monkeypatch: pytest.MonkeyPatch, log_format: str, terminal: bool, text: bool
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    for name in ("", "bentoml"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [logging.StreamHandler(stream)])
    configure_logs(log_format)
    logging.getLogger("vision_encoder").warning("one\ntwo", extra={"name_of": "a b", "n": 1})
    (line,) = stream.getvalue().splitlines()
    if text:
        assert line[9:] == r"WARNING 'one\ntwo' name_of='a b' n=1"
    else:
        logged = json.loads(line)
        assert (logged["level"], logged["message"]) == ("WARNING", "one\ntwo")
        assert (logged["name_of"], logged["n"]) == ("a b", 1)


def test_a_model_that_cannot_be_loaded_ends_the_service_with_status_1() -> None:
    environment = {**os.environ, "PORT": str(free_port()), "BENTOML_DO_NOT_TRACK": "True"}
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "service:VisionEncoder"],
        cwd=ROOT,
        env={**environment, "API_KEY": "s3cret", "MODEL_NAME": "ViT-L-99"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    (line,) = [line for line in done.stdout.splitlines() if "the service cannot start" in line]
    assert "MODEL_NAME=ViT-L-99" in json.loads(line)["message"]
    assert "s3cret" not in done.stdout + done.stderr
    assert done.returncode == 1


def test_invalid_settings_end_the_service_with_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import service"],
        cwd=ROOT,
        env={**os.environ, "WORKERS": "2", "QDRANT_ENABLED": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "QDRANT_HOST" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_garbage_collector_does_not_scan_the_loaded_model() -> None:
    program = """
import gc, time
from service import VisionEncoder

service = VisionEncoder.inner()
while not service.__is_ready__():
    time.sleep(0.05)
print(gc.get_freeze_count(), len(gc.get_objects()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "MODEL_NAME": BUNDLED, "QDRANT_ENABLED": "false"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    kept, watched = map(int, done.stdout.split()[-2:])
    assert kept > 10 * watched, done.stderr


def test_bentoml_takes_the_options_of_the_service() -> None:
    code = (
        "import json, service; config = service.VisionEncoder.config; "
        "from bento.web.connections.connection import Connection; "
        "idle = Connection.keep_alive_seconds; "
        "gpus, workers = config['resources'].get('gpu'), config['workers']; "
        "print(json.dumps([gpus, workers, config['http'], idle]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={
            **os.environ,
            "DEVICE": "cuda:1",
            "WORKERS": "3",
            "PORT": "8123",
            "KEEP_ALIVE_SECONDS": "7",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [1, 3, {"host": "127.0.0.1", "port": 8123}, 7]


def test_a_service_idles_in_little_memory_and_keeps_its_index_when_stopped(tmp_path: Path) -> None:
    body = {"id": "kept", "image_base64": PNG}
    with serving(tmp_path) as first:
        assert _resident(first) < IDLE_BYTES
        with first.client() as http:
            assert http.post("/images", json=body).json()["outcome"] == "indexed"
        children = psutil.Process(first.pid).children(recursive=True)
        os.kill(first.pid, signal.SIGINT)  # as Ctrl-C does
        gone, alive = psutil.wait_procs(children, timeout=30)
        assert gone
        assert not alive
    # an empty lock shows that the store was closed
    assert (tmp_path / "qdrant" / ".lock").read_text() == ""
    with serving(tmp_path) as second, second.client() as http:
        assert http.post("/images", json=body).json()["outcome"] == "unchanged"
        assert http.get("/collections/daarion_images").json()["points"] == 1


def test_a_collection_of_another_model_disables_search_only(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path / "qdrant")
    store.open("daarion_images", ModelIdentity("ViT-B-32", "openai", "abc", "resize", 512))
    store.close()
    with serving(tmp_path) as served, served.client() as http:
        refused = http.post("/search", json={"text": "a circle"})
        assert (refused.status_code, refused.json()["code"]) == (409, "collection_mismatch")
        assert "ViT-B-32/openai" in refused.json()["error"]
        assert http.post("/embed/text", json={"text": "a circle"}).status_code == 200
        assert http.get("/readyz").status_code == 200
        assert "search is degraded" in served.log.read_text()
        metrics = http.get("/metrics").text
        assert 'vision_encoder_collection_mismatch{collection="daarion_images"} 1.0' in metrics
        assert 'vision_encoder_store_up{collection="daarion_images"} 1.0' in metrics


@pytest.mark.slow  # the service tries the store for 19 s before it starts
def test_a_scrape_does_not_wait_for_a_silent_store(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, but never answers
        where = {"QDRANT_HOST": "127.0.0.1", "QDRANT_GRPC_PORT": str(silent.getsockname()[1])}
        with serving(tmp_path, **where) as served, served.client() as http:
            began = time.monotonic()
            metrics = http.get("/metrics").text
            assert time.monotonic() - began < 2  # a call of the store takes 19 s
            assert 'vision_encoder_store_up{collection="daarion_images"} 0.0' in metrics
            assert "vision_encoder_store_free_bytes{" not in metrics


def _until(words: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines up to the first with these words."""
    for line in lines:
        yield line
        if words in line:
            return


def _resident(server: Server) -> int:
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    return sum(process.memory_info().rss for process in processes)
