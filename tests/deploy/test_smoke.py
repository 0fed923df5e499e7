"""The smoke tests' script, against real processes and against broken ones."""

from __future__ import annotations

import json
import os
import socket
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

LINE = "=" * 38


def summary(verdict: str, counts: str) -> str:
    return f"{LINE}\nVision Encoder Smoke Tests {verdict}\n{counts}\n{LINE}\n"


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
        assert done.stdout.endswith(summary("PASSED", "6 passed"))
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


def test_without_url_fetching_its_test_is_skipped(server: Server) -> None:
    with routing(server.url) as router, socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])  # the skipped test does not need it
        for given in ({"IMAGE_PORT": port}, {"IMAGE_URL": "http://a.test/a.png"}):
            done = smoke(VISION_ENCODER_URL=server.url, ROUTER_URL=router, **given)
            assert done.returncode == 0, done.stderr
            assert done.stdout.endswith(summary("PASSED", "5 passed, 1 skipped"))
            _, _, skipped = done.stdout.partition("⏭ SKIP: ")
            assert "url_refused" in skipped
            assert "start the encoder with ALLOW_IMAGE_URLS=true" in skipped
            ports = f"IMAGE_URL_ALLOWED_HOSTS=127.0.0.1 IMAGE_URL_ALLOWED_PORTS={port}\n"
            assert (ports in skipped) == ("IMAGE_PORT" in given)


def test_a_refused_host_is_a_failure(fetching: Server) -> None:
    with stub(WORKING) as fake:
        done = smoke(
            VISION_ENCODER_URL=fetching.url,
            ROUTER_URL=fake.url,
            IMAGE_URL="http://a.test/a.png",
            API_KEY=KEYS,
        )
    assert done.returncode == 1
    assert "url_refused" in done.stderr
    assert "whether the encoder runs with ALLOW_IMAGE_URLS=true" in done.stderr
    assert "⏭ SKIP:" not in done.stdout


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
    ("path", "broken", "problem"),
    [
        ("/health", (503, {"error": "the device hangs", "code": "not_ready"}), "device hangs"),
        ("/health", {"status": "degraded"}, "the encoder is not healthy"),
        ("/health", "<html>", "the encoder is not healthy"),
        ("/health", "", "the encoder is not healthy"),
        ("/info", {"model_name": "m"}, "names no model"),
        ("/info", (500, "oops"), "answered 500: oops"),
        ("/embed/text", (401, {"error": "no key", "code": "u"}), "API_KEY"),
        ("/embed/text", ONE_LONG, "not a normalized embedding of 2 dimensions"),
        ("/embed/text", NOT_NORMAL, "not a normalized embedding of 2 dimensions"),
        ("/embed/text", {**EMBEDDED, "embedding": None}, "not a normalized embedding"),
        ("/embed/image", (422, {"error": "refused", "code": "url_refused"}), "ALLOW_IMAGE_URLS"),
        ("/embed/image", ONE_LONG, "not a normalized embedding of 2 dimensions"),
        ("/route", (404, "nothing"), "whether the router is running"),
        ("/route", {"ok": False, "error": "no encoder"}, "did not embed: no encoder"),
        ("/route", {"ok": True, "provider_id": "other"}, "did not embed: no reason"),
        (
            "/route",
            {**WORKING["/route"], "data": ONE_LONG},
            "is not a normalized embedding of 2 dim",
        ),
        ("/collections/c", (503, {"error": "Qdrant away", "code": "s"}), "Qdrant away"),
        ("/collections/c", {"points": None}, "no number of points"),
        ("/readyz", (503, "some shards are not ready"), "whether Qdrant is running"),
        ("/collections", (401, "Must provide an API key"), "QDRANT_API_KEY"),
        ("/collections", {"collections": []}, "is not a Qdrant server"),
    ],
)
def test_a_broken_service_fails_its_test_with_a_hint_and_the_others_run(
    path: str, broken: Any, problem: str
) -> None:
    qdrant = path in ("/readyz", "/collections")
    done = run_against({**WORKING, path: broken}, qdrant=qdrant)
    assert done.returncode == 1
    failed = 2 if path == "/info" else 1  # /info names the collection of the last test
    assert done.stdout.endswith(summary("FAILED", f"{6 - failed} passed, {failed} failed"))
    assert done.stdout.count("✅ PASS:") == 6 - failed
    assert problem in done.stderr
    assert done.stderr.count("❌ FAIL:") == done.stderr.count("Look at:") == failed


def test_an_encoder_without_search_fails() -> None:
    info = {**WORKING["/info"], "collection": None}
    done = run_against({**WORKING, "/info": info})
    assert done.returncode == 1
    assert "QDRANT_ENABLED=true" in done.stderr


def test_a_missing_encoder_fails() -> None:
    nothing = f"http://127.0.0.1:{free_port()}"
    done = smoke(VISION_ENCODER_URL=nothing, ROUTER_URL=nothing, IMAGE_URL="http://a.test/a.png")
    assert done.returncode == 1
    assert done.stdout.endswith(summary("FAILED", "0 passed, 6 failed"))
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


def test_a_service_under_a_path_is_reached() -> None:
    with stub({f"/vision{path}": answer for path, answer in WORKING.items()}) as fake:
        url = f"{fake.url}/vision"
        done = smoke(VISION_ENCODER_URL=url, ROUTER_URL=url, IMAGE_URL="http://a.test/a.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(summary("PASSED", "6 passed"))


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
    assert done.stdout.endswith(summary("FAILED", "5 passed, 1 failed"))
    assert f"another program answers at port {port}\n   Look at: IMAGE_PORT" in done.stderr


def test_without_a_temporary_folder_it_does_nothing() -> None:
    done = smoke(TMPDIR="/no/such/folder", API_KEY="s3cret")
    assert done.returncode == 1
    assert not Path("/key").exists()
