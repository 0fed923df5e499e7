"""The smoke tests' script, against real processes and against broken ones."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import BUNDLED, ROOT
from tests.support.router_client.routing import routing
from tests.support.serving import Server, free_port, serving

pytestmark = pytest.mark.service

PASSED = "======================================\nVision Encoder Smoke Tests PASSED\n"


KEYS = "the-first,the-second"


def smoke(**targets: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **targets}
    return subprocess.run(
        ["./test-vision-encoder.sh"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def picture_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def fetching(tmp_path_factory: pytest.TempPathFactory, picture_port: int) -> Iterator[Server]:
    """Run a service with keys that may fetch the script's picture."""
    folder = tmp_path_factory.mktemp("smoke")
    with serving(
        folder,
        API_KEY=KEYS,
        ALLOW_IMAGE_URLS="true",
        IMAGE_URL_ALLOWED_HOSTS="127.0.0.1",
        IMAGE_URL_ALLOWED_PORTS=str(picture_port),
    ) as served:
        yield served


def test_a_deployment_that_works_passes(fetching: Server, picture_port: int) -> None:
    with (
        routing(fetching.url, API_KEY=KEYS) as router,
        stub({"/readyz": "ready", **COLLECTIONS}) as qdrant,
    ):
        targets = {
            "VISION_ENCODER_URL": fetching.url,
            "ROUTER_URL": router,
            "IMAGE_PORT": str(picture_port),
            "API_KEY": KEYS,
        }
        done = smoke(**targets)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(PASSED + "=" * 38 + "\n")
        assert done.stdout.count("✅ PASS:") == 6
        assert f'"model": "{BUNDLED}/local"' in done.stdout
        assert "the store answers, 0 pictures in daarion_images" in done.stdout
        with_server = smoke(**targets, QDRANT_URL=qdrant.url, QDRANT_API_KEY="k")
        assert with_server.returncode == 0, with_server.stderr
        assert "✅ PASS: Qdrant is ready" in with_server.stdout
        assert qdrant.headers["api-key"] == "k"
        refused = smoke(**{**targets, "API_KEY": "another"})
        assert refused.returncode == 1
        assert "API_KEY" in refused.stderr


def test_the_setting_that_allows_fetching_is_named(server: Server) -> None:
    done = smoke(VISION_ENCODER_URL=server.url, IMAGE_PORT=str(free_port()))
    assert done.returncode == 1
    assert done.stdout.count("✅ PASS:") == 3
    assert "ALLOW_IMAGE_URLS=true IMAGE_URL_ALLOWED_HOSTS=127.0.0.1" in done.stderr
    given = smoke(VISION_ENCODER_URL=server.url, IMAGE_URL="http://a.test/a.png")
    assert given.returncode == 1
    assert "url_refused" in given.stderr


class Stub:
    """Answers each path with a body or (status, body), and keeps the last request's headers."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.headers: dict[str, str] = {}
        self.url = ""


@contextmanager
def stub(answers: dict[str, Any]) -> Iterator[Stub]:
    fake = Stub(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake.headers = {name.lower(): value for name, value in self.headers.items()}
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = fake.answers.get(self.path, (404, {"error": "no such route", "code": "x"}))
            status, body = answer if isinstance(answer, tuple) else (200, answer)
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


EMBEDDED = {"embedding": [0.6, 0.8], "dimension": 2, "model": "m/p", "normalized": True}
COLLECTIONS = {"/collections": {"status": "ok", "result": {"collections": []}}}
WORKING: dict[str, Any] = {
    "/health": {"status": "healthy"},
    "/info": {"model_name": "m", "pretrained": "p", "embedding_dim": 2, "collection": "c"},
    "/embed/text": EMBEDDED,
    "/embed/image": EMBEDDED,
    "/route": {"ok": True, "provider_id": "vision_encoder", "data": EMBEDDED},
    "/collections/c": {"collection": "c", "points": 7},
    "/readyz": "all shards are ready",
    **COLLECTIONS,
}
ONE_LONG = {"embedding": [1.0], "dimension": 1}
NOT_NORMAL = {"embedding": [3.0, 4.0], "dimension": 2}


def run_against(
    answers: dict[str, Any], *, qdrant: bool = False, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the script against a stub for all services; with `qdrant` for a Qdrant server too."""
    with stub(answers) as fake:
        targets = {"VISION_ENCODER_URL": fake.url, "ROUTER_URL": fake.url}
        if qdrant:
            targets["QDRANT_URL"] = fake.url
        return smoke(**targets, IMAGE_URL="http://a.test/a.png", **more)


def test_a_stub_of_a_working_deployment_passes() -> None:
    for qdrant in (False, True):
        done = run_against(WORKING, qdrant=qdrant)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("✅ PASS:") == 6


@pytest.mark.parametrize(
    ("passed", "path", "broken", "problem"),
    [
        (0, "/health", (503, {"error": "the device hangs", "code": "not_ready"}), "device hangs"),
        (0, "/health", {"status": "degraded"}, "the encoder is not healthy"),
        (0, "/health", "<html>", "the encoder is not healthy"),
        (1, "/info", {"model_name": "m"}, "names no model"),
        (1, "/info", (500, "oops"), "answered 500: oops"),
        (2, "/embed/text", (401, {"error": "no key", "code": "u"}), "API_KEY"),
        (2, "/embed/text", ONE_LONG, "not a normalized embedding of 2 dimensions"),
        (2, "/embed/text", NOT_NORMAL, "not a normalized embedding of 2 dimensions"),
        (2, "/embed/text", {**EMBEDDED, "embedding": None}, "not a normalized embedding"),
        (3, "/embed/image", (422, {"error": "refused", "code": "url_refused"}), "ALLOW_IMAGE_URLS"),
        (3, "/embed/image", ONE_LONG, "not a normalized embedding of 2 dimensions"),
        (4, "/route", (404, "nothing"), "whether the router is running"),
        (4, "/route", {"ok": False, "error": "no encoder"}, "did not embed: no encoder"),
        (4, "/route", {"ok": True, "provider_id": "other"}, "did not embed: no reason"),
        (4, "/route", {**WORKING["/route"], "data": ONE_LONG}, "does not have 2 dimensions"),
        (5, "/collections/c", (503, {"error": "Qdrant away", "code": "s"}), "Qdrant away"),
        (5, "/collections/c", {"points": None}, "no number of points"),
        (5, "/readyz", (503, "some shards are not ready"), "whether Qdrant is running"),
        (5, "/collections", (401, "Must provide an API key"), "QDRANT_API_KEY"),
        (5, "/collections", {"collections": []}, "is not a Qdrant server"),
    ],
)
def test_a_broken_service_fails_its_test_with_a_hint(
    passed: int, path: str, broken: Any, problem: str
) -> None:
    qdrant = path in ("/readyz", "/collections")
    done = run_against({**WORKING, path: broken}, qdrant=qdrant)
    assert done.returncode == 1
    assert done.stdout.count("✅ PASS:") == passed
    assert "PASSED" not in done.stdout
    assert problem in done.stderr
    assert done.stderr.count("❌ FAIL:") == done.stderr.count("Look at:") == 1


def test_an_encoder_without_search_fails() -> None:
    info = {**WORKING["/info"], "collection": None}
    done = run_against({**WORKING, "/info": info})
    assert done.returncode == 1
    assert "QDRANT_ENABLED=true" in done.stderr


def test_a_missing_encoder_fails() -> None:
    done = smoke(VISION_ENCODER_URL=f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "PASS" not in done.stdout
    assert "whether the encoder is running" in done.stderr


def test_the_key_is_sent_but_not_in_an_argument(tmp_path: Path) -> None:
    seen = tmp_path / "arguments"
    curl = tmp_path / "curl"
    curl.write_text(f'#!/bin/bash\necho "$@" >> {seen}\nPATH="{os.environ["PATH"]}" exec curl "$@"')
    curl.chmod(0o755)
    with stub(WORKING) as fake:
        done = smoke(
            VISION_ENCODER_URL=fake.url,
            ROUTER_URL=fake.url,
            IMAGE_URL="http://a.test/a.png",
            API_KEY="s3cret",
            PATH=f"{tmp_path}:{os.environ['PATH']}",
        )
        assert done.returncode == 0, done.stderr
        assert fake.headers["authorization"] == "Bearer s3cret"
    assert "/embed/text" in seen.read_text()
    assert "s3cret" not in seen.read_text() + done.stdout


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["http://x"], 2)])
def test_it_explains_itself(arguments: list[str], status: int) -> None:
    command = ["./test-vision-encoder.sh", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status
    for variable in ("VISION_ENCODER_URL", "ROUTER_URL", "QDRANT_URL", "API_KEY", "IMAGE_URL"):
        assert variable in done.stdout + done.stderr


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    assert run_against(WORKING, TMPDIR=str(tmp_path)).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_slash_at_the_end_of_an_address_does_not_matter() -> None:
    with stub(WORKING) as fake:
        targets = {"VISION_ENCODER_URL": f"{fake.url}/", "ROUTER_URL": f"{fake.url}/"}
        done = smoke(**targets, QDRANT_URL=f"{fake.url}/", IMAGE_URL="http://a.test/a.png")
    assert done.returncode == 0, done.stderr


def test_hosts_of_no_proxy_are_reached_directly() -> None:
    with stub(WORKING) as fake:
        url = fake.url.replace("127.0.0.1", "127.0.0.2")
        done = smoke(
            VISION_ENCODER_URL=url,
            NO_PROXY="127.0.0.2",
            http_proxy=f"http://127.0.0.1:{free_port()}",
            IMAGE_URL="http://a.test/a.png",
            ROUTER_URL=fake.url,
        )
    # The stub listens on 127.0.0.1 only: a direct connection fails at 127.0.0.2, not at the proxy.
    assert "connect to 127.0.0.2" in done.stderr
    assert done.returncode == 1


def test_another_program_on_the_picture_port_is_detected() -> None:
    with stub({**WORKING, "/circle.png": "something else"}) as fake:
        port = fake.url.rpartition(":")[2]
        targets = {"VISION_ENCODER_URL": fake.url, "ROUTER_URL": fake.url}
        done = smoke(**targets, IMAGE_PORT=port)
    assert done.returncode == 1
    assert done.stdout.count("✅ PASS:") == 3
    assert "IMAGE_PORT" in done.stderr


def test_without_a_temporary_folder_it_does_nothing() -> None:
    done = smoke(TMPDIR="/no/such/folder", API_KEY="s3cret")
    assert done.returncode == 1
    assert not Path("/key").exists()
