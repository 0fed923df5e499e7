"""The service's process: how it starts, fails to start, idles and stops."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.bento.asking import PNG
from tests.support.paths import BUNDLED, ROOT
from tests.support.serving import Server, free_port, serving


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
        # without QDRANT_ENABLED a pure encoder opens no store
        refused = httpx.post(f"http://127.0.0.1:{port}/search", json={"text": "a"})
        assert (refused.status_code, refused.json()["code"]) == (503, "search_disabled")
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"MODEL_NAME": "ViT-L-99"}, "cannot load MODEL_NAME=ViT-L-99"),
        ({"MODEL_NAME": "ViT-B-32", "MODEL_PRETRAINED": "/no/weights.pt"}, "/no/weights.pt"),
        ({"MODEL_NAME": "local-dir:/no/model"}, "local-dir: needs a folder with open_clip_config"),
        ({"MODEL_NAME": BUNDLED, "DEVICE": "cuda:7"}, "DEVICE=cuda:7, but torch sees"),
    ],
)
def test_what_cannot_be_loaded_stops_the_service_with_a_sentence_and_status_1(
    setting: dict[str, str], sentence: str
) -> None:
    environment = {**os.environ, "PORT": str(free_port()), "BENTOML_DO_NOT_TRACK": "True"}
    environment["API_KEY"] = "s3cret"
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "service:VisionEncoder"],
        cwd=ROOT,
        env={**environment, **setting},
        capture_output=True,
        text=True,
        timeout=120,
    )
    (line,) = [line for line in done.stdout.splitlines() if "not serving" in line]
    assert sentence in json.loads(line)["message"]
    assert "s3cret" not in done.stdout + done.stderr
    assert done.returncode == 1


def test_a_mistake_in_the_settings_of_several_workers_is_a_sentence() -> None:
    environment = {**os.environ, "WORKERS": "2", "QDRANT_ENABLED": "true"}
    done = subprocess.run(
        [sys.executable, "-c", "import service"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "QDRANT_HOST" in done.stderr and "Traceback" not in done.stderr


def test_what_is_loaded_is_out_of_the_garbage_collectors_way() -> None:
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


@pytest.mark.parametrize(
    ("device", "gpu"), [("cpu", None), ("auto", None), ("cuda", 1), ("cuda:1", 1)]
)
def test_a_gpu_and_the_workers_are_reserved_as_set(device: str, gpu: int | None) -> None:
    code = (
        "import json, os, service; config = service.VisionEncoder.config; "
        "print(json.dumps([config['resources'].get('gpu'), config['workers'], config['http'], "
        "os.environ.get('BENTOML_DISABLE_GPU_ALLOCATION')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "DEVICE": device, "WORKERS": "3", "PORT": "8123"},
        capture_output=True,
        text=True,
        check=True,
    )
    # cuda:1 must not be hidden from the worker, as BentoML's own allocation would
    kept = "1" if device == "cuda:1" else None
    assert json.loads(done.stdout) == [gpu, 3, {"host": "127.0.0.1", "port": 8123}, kept]


def test_a_stopped_service_leaves_no_process_and_keeps_what_it_indexed(tmp_path: Path) -> None:
    body = {"id": "kept", "image_base64": PNG}
    with serving(tmp_path) as first:
        with first.client() as http:
            assert http.post("/images", json=body).json()["outcome"] == "indexed"
        children = psutil.Process(first.pid).children(recursive=True)
        # what an impatient person presses
        os.kill(first.pid, signal.SIGINT)
        gone, alive = psutil.wait_procs(children, timeout=30)
        assert gone and not alive
    # the store was closed in order: its lock names no owner any more
    assert (tmp_path / "qdrant" / ".lock").read_text() == ""
    with serving(tmp_path) as second, second.client() as http:
        assert http.post("/images", json=body).json()["outcome"] == "unchanged"
        assert http.get("/collections/daarion_images").json()["points"] == 1


def test_a_collection_of_another_model_is_refused_and_embedding_goes_on(tmp_path: Path) -> None:
    from rag.store.edge.store import EdgeStore
    from rag.store.interface import ModelIdentity

    store = EdgeStore(tmp_path / "qdrant")
    store.open("daarion_images", ModelIdentity("ViT-B-32", "openai", "abc", "resize", 512))
    store.close()
    with serving(tmp_path) as served, served.client() as http:
        refused = http.post("/search", json={"text": "a circle"})
        assert (refused.status_code, refused.json()["code"]) == (409, "collection_mismatch")
        assert "ViT-B-32/openai" in refused.json()["error"]
        assert "vision-rag reindex" in refused.json()["error"]
        assert http.post("/embed/text", json={"text": "a circle"}).status_code == 200
        assert http.get("/readyz").status_code == 200
        assert "search is degraded" in served.log.read_text()


def test_the_idle_service_stays_below_its_memory_bound(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        resident = _resident(server)
    logging.getLogger(__name__).info("resident: %.0f MB", resident / 1e6)
    assert resident < 1.2e9


def _resident(server: Server) -> int:
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    return sum(process.memory_info().rss for process in processes)
