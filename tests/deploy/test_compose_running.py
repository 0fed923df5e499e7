"""The Compose files at work: health checks, the router's command, Docker Compose itself."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.deploy.compose import (
    COMPOSE,
    GPU,
    GPUS,
    OURS,
    SERVICES,
    compose,
    environment,
    mounted,
)
from tests.support.paths import ROOT
from tests.support.serving import Server, free_port

pytestmark = pytest.mark.service

HEALTH = {
    "vision-encoder": "/readyz",
    "qdrant": "/readyz",
    "router": "/health",
    "prometheus": "/-/ready",
    "grafana": "/api/health",
}
PORTS = {
    "vision-encoder": 8001,
    "qdrant": 6333,
    "router": 9102,
    "prometheus": 9090,
    "grafana": 3000,
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the Bento and return its folder."""
    home = tmp_path_factory.mktemp("bentoml")
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "build"],
        cwd=ROOT,
        env={**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (home / "bentos" / "vision-encoder").glob("*/src")
    return folder.parent


def test_the_images_user_owns_the_mounted_folders(built: Path) -> None:
    dockerfile = (built / "env" / "docker" / "Dockerfile").read_text()
    before_user = dockerfile.split("\nUSER ")[0]
    (script,) = re.findall(r"&& (\./env/docker/script__\w+)", before_user)
    made = re.search(r"install -d -o bentoml -g bentoml (.*)", (built / script).read_text())
    assert made
    assert set(mounted("vision-encoder")) <= set(made[1].split())
    assert "\nARG BENTO_USER=bentoml\n" in dockerfile


def test_the_routers_command_runs_from_the_bento(built: Path, server: Server) -> None:
    router = SERVICES["router"]
    dockerfile = (built / "env" / "docker" / "Dockerfile").read_text()
    (folder,) = re.findall(r"(?m)^ARG BENTO_PATH=(.*)$", dockerfile)
    assert router["working_dir"] == f"{folder}/src"
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, *router["command"][1:], "--port", str(port)],
        cwd=built / "src",
        env={**os.environ, **environment("router"), "VISION_ENCODER_URL": server.url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while check("router", port) != 0:
            assert process.poll() is None
            assert time.monotonic() < deadline
        body = {"mode": "vision_embed", "payload": {"operation": "embed_text", "text": "red"}}
        answer = httpx.post(f"http://127.0.0.1:{port}/route", json=body, timeout=30).json()
        assert answer["ok"], answer
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert check("router", port) != 0


def check(name: str, port: int, **variables: str) -> int:
    """Run a service's health check against a port of this machine; return its exit status."""
    kind, script = SERVICES[name]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    assert script.count(str(PORTS[name])) == 1
    found = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["sh", "-c", script.replace("$$", "$").replace(str(PORTS[name]), str(port))],
        env={**os.environ, "PATH": found, **variables},
        capture_output=True,
        timeout=int(SERVICES[name]["healthcheck"]["timeout"].removesuffix("s")),
    )
    return done.returncode


@contextmanager
def answering(status: int, path: str) -> Iterator[int]:
    """Run a server that answers `path` with a status and other paths with 404; yield its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == path else 404)
            self.send_header("Location", "/")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        try:
            yield httpd.server_port
        finally:
            httpd.shutdown()


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("status", [200, 204, 307, 404, 500, 503])
def test_only_200_is_healthy(name: str, status: int) -> None:
    with answering(status, HEALTH[name]) as port:
        assert (check(name, port) == 0) == (status == 200)


@pytest.mark.parametrize("name", SERVICES)
def test_an_absent_or_silent_server_is_unhealthy_in_time(name: str) -> None:
    assert check(name, free_port()) != 0
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert (
            check(name, silent.getsockname()[1]) != 0
        )  # raises if it takes longer than Docker's limit


@pytest.mark.parametrize("name", SERVICES)
def test_a_server_without_http_is_unhealthy(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"200 200 200\r\n" if name != "qdrant" else b"hello\r\n")

        threading.Thread(target=hang_up, daemon=True).start()
        assert check(name, server.getsockname()[1]) != 0


@pytest.mark.parametrize("name", [*OURS, "prometheus", "grafana"])
def test_a_health_check_ignores_the_proxy_of_a_container(name: str) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"
    with answering(200, HEALTH[name]) as port:
        assert check(name, port, http_proxy=proxy, HTTP_PROXY=proxy, no_proxy="") == 0


def test_the_served_encoder_is_healthy(server: Server) -> None:
    assert check("vision-encoder", int(server.url.rpartition(":")[2])) == 0


def configured(folder: Path, *files: Path, profile: str = "") -> subprocess.CompletedProcess[str]:
    """Let Compose read the files with the variables of `.env` in `folder`."""
    named = [argument for file in files for argument in ("-f", str(file))]
    kept = ("PATH", "HOME", "DOCKER_CONFIG")
    return subprocess.run(
        [*compose(), "--project-directory", str(folder), *named, "--profile", profile, "config"],
        cwd=folder,
        env={name: os.environ[name] for name in kept if name in os.environ},
        capture_output=True,
        text=True,
    )


def test_compose_reads_both_files(tmp_path: Path) -> None:
    one = configured(tmp_path, COMPOSE)
    assert one.returncode == 0, one.stderr
    assert "variable is not set" not in one.stderr
    services = yaml.safe_load(one.stdout)["services"]
    assert services.keys() == {n for n, each in SERVICES.items() if "profiles" not in each}
    assert services["vision-encoder"]["environment"]["DEVICE"] == "auto"
    assert "reservations" not in services["vision-encoder"]["deploy"]["resources"]

    shutil.copy(ROOT / ".env.example", tmp_path / ".env")
    with (tmp_path / ".env").open("a") as file:
        file.write("VISION_DEVICE=\nMAX_BATCH_SIZE=8\n")
    both = configured(tmp_path, COMPOSE, GPU)
    assert both.returncode == 0, both.stderr
    services = yaml.safe_load(both.stdout)["services"]
    encoder = services["vision-encoder"]
    assert "dcgm-exporter" not in services
    assert encoder["environment"]["DEVICE"] == "cuda"
    assert encoder["environment"]["MAX_BATCH_SIZE"] == "8"
    assert encoder["environment"]["HOST"] == "0.0.0.0"  # not the value of .env.example
    (gpu,) = encoder["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["driver"] == "nvidia"
    assert encoder["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}

    monitored = configured(tmp_path, COMPOSE, GPU, profile="monitoring")
    assert monitored.returncode == 0, monitored.stderr
    services = yaml.safe_load(monitored.stdout)["services"]
    assert services.keys() == {*SERVICES, "dcgm-exporter"}


def test_compose_runs_one_encoder_per_gpu_behind_one_name(tmp_path: Path) -> None:
    shutil.copy(COMPOSE, tmp_path)  # `extends` names it relative to the project's folder
    both = configured(tmp_path, COMPOSE, GPUS)
    assert both.returncode == 0, both.stderr
    services = yaml.safe_load(both.stdout)["services"]
    encoders = {name: each for name, each in services.items() if name.startswith("vision-encoder")}
    assert len(encoders) == 2
    gpus: set[str] = set()
    ports: set[str] = set()
    for name, encoder in encoders.items():
        (gpu,) = encoder["deploy"]["resources"]["reservations"]["devices"]
        gpus.update(gpu["device_ids"])
        ports.update(port["published"] for port in encoder["ports"])
        assert encoder["environment"]["DEVICE"] == "cuda"
        aliases = (encoder["networks"]["dagi-network"] or {}).get("aliases", [])
        assert "vision-encoder" in (name, *aliases)
    assert (gpus, ports) == ({"0", "1"}, {"8001", "8002"})


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("read_only: true", "read_onyl: true"),
        ("condition: service_healthy", "condition: service_happy"),
        ("networks: [dagi-network]", "networks: [no-such-network]"),
    ],
)
def test_compose_rejects_a_broken_file(tmp_path: Path, right: str, wrong: str) -> None:
    broken = tmp_path / "docker-compose.yml"
    text = COMPOSE.read_text()
    assert right in text
    broken.write_text(text.replace(right, wrong))
    assert configured(tmp_path, broken).returncode != 0
