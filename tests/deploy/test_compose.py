"""The compose files: what they publish, pass on and protect, and their health checks, run."""

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

from bento import Settings
from rag import RagSettings
from router_client import ClientSettings
from tests.support.deploy.compose import FIXED, FOLDERS, SERVICES
from tests.support.deploy.variables import FIELDS, PREFIXED, settings_table
from tests.support.paths import ROOT
from tests.support.serving import Server, free_port

COMPOSE = ROOT / "docker-compose.yml"
GPU = ROOT / "docker-compose.gpu.yml"
OURS = ("vision-encoder", "router")
VARIABLE = re.compile(r"\$\{([A-Z_]+):-([^${}]*)\}")

# Qdrant's ports are its own in the network, and the embedded store is not used.
NOT_SAID = {"QDRANT_PORT", "QDRANT_GRPC_PORT", "QDRANT_PATH"}


def environment(service: str, operator: dict[str, str] | None = None) -> dict[str, str]:
    """Return what a container of a service gets when an operator has set `operator`."""
    given = operator or {}
    return {
        name: VARIABLE.sub(lambda found: given.get(found[1]) or found[2], value)
        for name, value in SERVICES[service]["environment"].items()
    }


def mounted(service: str) -> list[str]:
    return [volume.split(":")[1] for volume in SERVICES[service]["volumes"]]


def test_every_port_is_published_on_the_loopback_address_alone() -> None:
    assert {name: service["ports"] for name, service in SERVICES.items()} == {
        "vision-encoder": ["127.0.0.1:8001:8001"],
        "qdrant": ["127.0.0.1:6333:6333", "127.0.0.1:6334:6334"],
        "router": ["127.0.0.1:9102:9102"],
    }


def test_other_compose_projects_can_join_the_network_of_all_three() -> None:
    networks = yaml.safe_load(COMPOSE.read_text())["networks"]
    assert networks == {"dagi-network": {"name": "dagi-network"}}
    assert all(service["networks"] == ["dagi-network"] for service in SERVICES.values())


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "user", "network_mode"} & service.keys()
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"memory", "pids"}  # a limit above the host's cores does not start


def test_what_a_service_writes_lies_in_a_volume_or_in_memory() -> None:
    volumes = yaml.safe_load(COMPOSE.read_text())["volumes"]
    used = [volume for service in SERVICES.values() for volume in service.get("volumes", ())]
    assert {volume.split(":")[0] for volume in used} == volumes.keys()
    assert all(service["tmpfs"] == ["/tmp"] for service in SERVICES.values())
    said = environment("vision-encoder")
    for name in (*FOLDERS, "THUMBNAILS_PATH"):
        assert said[name].startswith((*mounted("vision-encoder"), "/tmp/")), name
    assert "/qdrant/storage" in mounted("qdrant")


def test_a_stopped_service_may_end_what_is_under_way() -> None:
    seconds = {name: int(service["stop_grace_period"][:-1]) for name, service in SERVICES.items()}
    assert seconds["vision-encoder"] > 60  # the limit of a request
    assert seconds["router"] > 30  # `timeout_graceful_shutdown`
    assert seconds["qdrant"] >= 30


@pytest.mark.parametrize("file", [COMPOSE, GPU], ids=lambda file: file.name)
def test_every_variable_of_a_compose_file_is_documented_and_read(file: Path) -> None:
    text = re.sub(r"(?m)^\s*#.*$", "", file.read_text()).replace("$$", "")
    used = {name for name, _ in VARIABLE.findall(text)}
    assert text.count("$") == len(VARIABLE.findall(text)), "one without a default"
    example = set(re.findall(r"(?m)^(?:# )?([A-Z_]+)=", (ROOT / ".env.example").read_text()))
    assert used <= example
    fields = {name.removeprefix("VISION_") if name in PREFIXED else name for name in used}
    assert fields <= FIELDS.keys()
    assert fields <= settings_table().keys()


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_given_only_variables_that_are_read(name: str) -> None:
    assert environment(name).keys() <= FIELDS.keys() | FOLDERS


def test_every_setting_of_an_operator_reaches_its_service() -> None:
    encoder = {name.upper() for cls in (Settings, RagSettings) for name in cls.model_fields}
    client = {name.upper() for name in ClientSettings.model_fields}
    for service, names in (("vision-encoder", encoder), ("router", client)):
        for name in names - FIXED[service].keys() - NOT_SAID:
            variable = f"VISION_{name}" if f"VISION_{name}" in PREFIXED else name
            assert environment(service, {variable: "theirs"})[name] == "theirs", name
        for name, value in FIXED[service].items():
            assert environment(service, {name: "theirs"})[name] == value, name
    assert environment("qdrant", {"QDRANT_API_KEY": "k"})["QDRANT__SERVICE__API_KEY"] == "k"


@pytest.mark.parametrize("filled", [False, True], ids=["no .env", ".env.example"])
def test_the_containers_defaults_are_those_of_the_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, filled: bool
) -> None:
    lines = re.findall(r"(?m)^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text())
    operator = dict(lines) if filled else {}
    monkeypatch.chdir(tmp_path)
    classes = {"vision-encoder": (Settings, RagSettings), "router": (ClientSettings,)}
    for service, each in classes.items():
        defaults = {name.upper(): v for cls in each for name, v in cls().model_dump().items()}
        with monkeypatch.context() as patch:
            for name, value in environment(service, operator).items():
                patch.setenv(name, value)
            said = {name.upper(): v for cls in each for name, v in cls().model_dump().items()}
        differing = {name for name in said if said[name] != defaults[name]}
        assert differing == FIXED[service].keys() - {"PORT"}, service


def test_the_gpu_file_adds_the_gpu_and_nothing_else() -> None:
    (service,) = yaml.safe_load(GPU.read_text())["services"].items()
    gpu = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert service == (
        "vision-encoder",
        {
            "environment": {"DEVICE": "${VISION_DEVICE:-cuda}"},
            "deploy": {"resources": {"reservations": {"devices": [gpu]}}},
        },
    )


# The image, as far as it can be had without building one.


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a built Bento."""
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


def test_the_images_user_owns_the_folders_that_volumes_are_mounted_on(built: Path) -> None:
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


# Health checks, run here as a container runs them.

HEALTH = {"vision-encoder": "/readyz", "qdrant": "/readyz", "router": "/health"}
PORTS = {"vision-encoder": 8001, "qdrant": 6333, "router": 9102}


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
    """A server that answers `path` with a status, and everything else with 404."""

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
def test_a_server_that_is_not_there_or_never_answers_is_unhealthy_in_time(name: str) -> None:
    assert check(name, free_port()) != 0
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert check(name, silent.getsockname()[1]) != 0  # within Docker's own limit, or it raises


@pytest.mark.parametrize("name", SERVICES)
def test_a_server_that_speaks_no_http_is_unhealthy(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"200 200 200\r\n" if name != "qdrant" else b"hello\r\n")

        threading.Thread(target=hang_up, daemon=True).start()
        assert check(name, server.getsockname()[1]) != 0


@pytest.mark.parametrize("name", OURS)
def test_a_health_check_goes_round_the_proxy_of_a_container(name: str) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"
    with answering(200, HEALTH[name]) as port:
        assert check(name, port, http_proxy=proxy, HTTP_PROXY=proxy, no_proxy="") == 0


def test_the_served_encoder_is_healthy(server: Server) -> None:
    assert check("vision-encoder", int(server.url.rpartition(":")[2])) == 0


# Docker Compose itself, where it is installed. It needs no daemon for this.


def compose() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
            if done.returncode == 0 and not done.stdout.startswith("1."):
                return command
    pytest.skip("Docker Compose 2 or newer is not installed")


def configured(folder: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    """Let Compose read the files, with the variables of `.env` in `folder`."""
    named = [argument for file in files for argument in ("-f", str(file))]
    kept = ("PATH", "HOME", "DOCKER_CONFIG")
    return subprocess.run(
        [*compose(), "--project-directory", str(folder), *named, "config"],
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
    assert services.keys() == SERVICES.keys()
    assert services["vision-encoder"]["environment"]["DEVICE"] == "auto"
    assert "reservations" not in services["vision-encoder"]["deploy"]["resources"]

    shutil.copy(ROOT / ".env.example", tmp_path / ".env")
    with (tmp_path / ".env").open("a") as file:
        file.write("VISION_DEVICE=\nMAX_BATCH_SIZE=8\n")
    both = configured(tmp_path, COMPOSE, GPU)
    assert both.returncode == 0, both.stderr
    encoder = yaml.safe_load(both.stdout)["services"]["vision-encoder"]
    assert encoder["environment"]["DEVICE"] == "cuda"
    assert encoder["environment"]["MAX_BATCH_SIZE"] == "8"
    assert encoder["environment"]["HOST"] == "0.0.0.0"  # not that of .env.example
    (gpu,) = encoder["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["driver"] == "nvidia"
    assert encoder["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("read_only: true", "read_onyl: true"),
        ("condition: service_healthy", "condition: service_happy"),
        ("networks: [dagi-network]", "networks: [no-such-network]"),
    ],
)
def test_compose_refuses_a_broken_file(tmp_path: Path, right: str, wrong: str) -> None:
    broken = tmp_path / "docker-compose.yml"
    text = COMPOSE.read_text()
    assert right in text
    broken.write_text(text.replace(right, wrong))
    assert configured(tmp_path, broken).returncode != 0
