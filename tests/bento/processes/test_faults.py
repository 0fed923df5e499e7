"""A served service whose parts fail: towers, workers, and the Qdrant server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from rag import RemoteBackend
from rag.indexing.backends import hold
from rag.indexing.plan import make_plan
from rag.indexing.run import carry_out, hash_sources
from rag.indexing.sources import find_sources
from rag.store.server.calls import ATTEMPTS, TIMEOUT_S
from router_client import VisionEncoderClient
from tests.support.bento.broken import broken
from tests.support.pictures import file_bytes, scene_image
from tests.support.rag.loopback import Loopback
from tests.support.serving import Server, serving

pytestmark = pytest.mark.service

# By their number of tokens, texts make the tower hang, raise an error or die. An image batch may
# have three pictures. The watchdog waits 3 s only.
HANG, RAISE, DIE = "a " * 150, "a " * 70, "a " * 40
FAULTS = """
import threading
import bento.runners.timing, torch
from bento.encoder.image_tower import ImageTower
from bento.encoder.text_tower import TextTower
bento.runners.timing.TIMING = bento.runners.timing.Timing(stuck=3.0)
text, image = TextTower.embed, ImageTower.embed
def embed_text(self, items):
    if any(len(item) > 100 for item in items):
        threading.Event().wait()
    if any(len(item) > 50 for item in items):
        raise RuntimeError("a kernel failed")
    if any(len(item) > 30 for item in items):
        raise SystemExit("broken")
    return text(self, items)
def embed_image(self, items):
    if len(items) > 3:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return image(self, items)
TextTower.embed, ImageTower.embed = embed_text, embed_image
"""


def until(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def embed(server: Server, text: str = "a red circle") -> httpx.Response:
    return httpx.post(f"{server.url}/embed/text", json={"text": text}, timeout=30)


def answers(server: Server) -> bool:
    try:
        return embed(server).status_code == 200
    except httpx.TransportError:
        return False


def workers(server: Server) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server.pid).children():
        with suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def test_the_service_recovers_from_a_tower_that_fails(tmp_path: Path) -> None:
    with serving(tmp_path, QDRANT_ENABLED="false", **broken(tmp_path, FAULTS)) as server:
        # raise: only the item that raises gets an error
        with ThreadPoolExecutor(8) as threads:
            texts = [RAISE if n == 3 else f"{n} circles" for n in range(8)]
            asked = list(threads.map(lambda text: embed(server, text), texts))
        assert [a.status_code for a in asked] == [200] * 3 + [500] + [200] * 4
        assert asked[3].json()["code"] == "internal_error"
        assert "a kernel failed" in server.log.read_text()
        # out of memory: the batch is halved, and the client gets its embeddings
        files = [("files", file_bytes(scene_image(n))) for n in range(16)]
        many = httpx.post(f"{server.url}/embed/images", files=files, timeout=60)
        assert many.status_code == 200
        assert many.json()["errors"] == []
        assert len(many.json()["embeddings"]) == 16
        assert "the device ran out of memory on a batch of" in server.log.read_text()
        # hang: the watchdog fails the waiting requests, and the worker is replaced
        (before,) = workers(server)
        with ThreadPoolExecutor(2) as threads:
            asked = list(threads.map(lambda text: embed(server, text), [HANG, HANG]))
        for answer in asked:
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        until(lambda: before not in workers(server))
        until(lambda: answers(server), 60)
        assert server.log.read_text().count("this worker ends: ") == 1
        # die: the worker is replaced, as after a hang
        (before,) = workers(server)
        answer = embed(server, DIE)
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        until(lambda: before not in workers(server))
        assert server.log.read_text().count("this worker ends: ") == 2


def test_one_of_two_workers_serves_while_the_other_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path, QDRANT_ENABLED="false", WORKERS="2") as server:
        until(lambda: server.log.read_text().count("Model loaded") == 2, 60)
        killed = workers(server)[0]
        killed.kill()
        seen = []
        while server.log.read_text().count("Model loaded") < 3:
            answer = embed(server)  # on a new connection, which is never refused
            seen.append(answer.status_code)
            # the new worker accepts connections before its model is loaded
            assert answer.status_code == 200 or answer.json()["code"] == "not_ready"
            assert len(seen) < 20_000
        assert seen.count(200) > 5
        assert len(workers(server)) == 2
        assert killed not in workers(server)
        assert [embed(server).status_code for _ in range(20)] == [200] * 20


def test_on_bentocloud_the_death_of_the_worker_ends_the_service(tmp_path: Path) -> None:
    # BentoML replaces no workers there. The platform restarts a service that ends.
    with serving(tmp_path, QDRANT_ENABLED="false", BENTOCLOUD_DEPLOYMENT_URL="https://x") as server:
        workers(server)[0].kill()
        assert psutil.Process(server.pid).wait(30) != 0


class FaultyQdrant(Loopback):
    """A stand-in for a Qdrant server that can be slow, unreachable or silent."""

    delay = 0.0

    def answer(self, method: str, serve: Any, request: Any, context: Any) -> Any:
        time.sleep(self.delay)
        return super().answer(method, serve, request, context)

    def leave(self) -> None:
        self.server.stop(None).wait()

    def come_back(self) -> None:
        self.start(self.port)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Accept connections without answering."""
        with socket.create_server(("127.0.0.1", self.port)):
            yield


@pytest.fixture
def qdrant() -> Iterator[FaultyQdrant]:
    qdrant = FaultyQdrant()
    yield qdrant
    qdrant.delay = 0.0
    qdrant.stop()


def search(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/search", json={"text": "a circle", "top_k": 50}, timeout=60)


def slowest_embedding(server: Server, stop: threading.Event) -> float:
    """Embed texts until `stop` is set, and return the longest time in seconds."""
    slowest = 0.0
    while not stop.is_set():
        began = time.monotonic()
        assert embed(server).status_code == 200
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def assert_degraded(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert answer.json()["success"] is False
    assert "Qdrant at 127.0.0.1" in answer.json()["error"]


def write_pictures(folder: Path, seeds: range) -> None:
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        scene_image(seed, side=64).save(folder / f"{seed:03}.png")


def index(server: Server, folder: Path, notes: list[str]) -> Any:
    """Index a folder through the service, as `vision-rag index` does."""
    backend = RemoteBackend(VisionEncoderClient(server.url, timeout=10))
    try:
        hashed, failures = hash_sources(find_sources([str(folder)], ()), 4, lambda *_: None)
        plan = make_plan(hashed, hold(backend, "daarion_images", "me"))
        report = carry_out(
            plan, backend, "daarion_images", "me", 4, lambda *progress: notes.append(progress[3])
        )
        assert not failures
        assert not report.failures
        return report
    finally:
        backend.close()


@pytest.mark.slow
def test_qdrant_slow_unreachable_silent_and_back(tmp_path: Path, qdrant: FaultyQdrant) -> None:
    where = {"QDRANT_HOST": "127.0.0.1", "QDRANT_GRPC_PORT": str(qdrant.port)}
    folder = tmp_path / "pictures"
    write_pictures(folder, range(5))
    with serving(tmp_path, **where) as server, ThreadPoolExecutor(40) as threads:
        assert index(server, folder, []).indexed == 5
        assert search(server).json()["count"] == 5
        stop = threading.Event()
        slowest = threads.submit(slowest_embedding, server, stop)

        qdrant.delay = 0.5
        began = time.monotonic()
        assert search(server).status_code == 200
        assert time.monotonic() - began >= 0.5
        qdrant.delay = 0.0

        # unreachable: searches fail in time, and indexing waits and continues
        qdrant.leave()
        began = time.monotonic()
        assert_degraded(search(server))
        assert time.monotonic() - began < ATTEMPTS * TIMEOUT_S + 2
        write_pictures(folder, range(5, 17))
        notes: list[str] = []
        qdrant.come_back()
        until(lambda: search(server).status_code == 200)
        qdrant.delay = 0.05  # leaves time to stop in the middle of indexing
        indexing = threads.submit(index, server, folder, notes)
        until(lambda: qdrant.calls.count("Upsert") > 5 + 2)
        qdrant.leave()
        qdrant.delay = 0.0
        until(lambda: any("waiting" in note for note in notes), 60)
        assert not indexing.done()
        qdrant.come_back()
        assert indexing.result(60).indexed <= 12
        stats = httpx.get(f"{server.url}/collections/daarion_images").json()
        assert stats["points"] == 17  # none lost, none twice

        # silent: 30 searches fail in the time of one
        qdrant.leave()
        with qdrant.silent():
            began = time.monotonic()
            for answer in threads.map(lambda _: search(server), range(30)):
                assert_degraded(answer)
            assert time.monotonic() - began < 2 * (ATTEMPTS * TIMEOUT_S + 2)
        qdrant.come_back()
        until(lambda: search(server).status_code == 200)
        assert index(server, folder, []).unchanged == 17

        stop.set()
        assert slowest.result(30) < 5  # seconds: embedding goes on meanwhile
        assert "Traceback" not in server.log.read_text()
