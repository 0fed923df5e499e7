"""The Compose files: ports, networks, rights, volumes and variables."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from bento import Settings
from rag import RagSettings
from router_client import ClientSettings
from tests.support.deploy.compose import (
    COMPOSE,
    FIXED,
    FOLDERS,
    GPU,
    OURS,
    SERVICES,
    VARIABLE,
    environment,
    mounted,
)
from tests.support.deploy.variables import BUILD, FIELDS, PREFIXED
from tests.support.paths import ROOT

# The network fixes Qdrant's ports, and the embedded store is not used.
UNSET = {"QDRANT_PORT", "QDRANT_GRPC_PORT", "QDRANT_PATH"}


def test_every_port_is_published_on_the_loopback_address_alone() -> None:
    assert {name: service["ports"] for name, service in SERVICES.items()} == {
        "vision-encoder": ["127.0.0.1:8001:8001"],
        "qdrant": ["127.0.0.1:6333:6333", "127.0.0.1:6334:6334"],
        "router": ["127.0.0.1:9102:9102"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_other_compose_projects_can_join_the_network_of_all() -> None:
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
    assert limits.keys() == {
        "memory",
        "pids",
    }  # a CPU limit above the host's cores prevents the start


def test_a_service_writes_to_volumes_and_memory_only() -> None:
    volumes = yaml.safe_load(COMPOSE.read_text())["volumes"]
    used = [volume for service in SERVICES.values() for volume in service.get("volumes", ())]
    files = {volume for volume in used if volume.startswith("./")}
    assert {volume.split(":")[0] for volume in {*used} - files} == volumes.keys()
    assert all(volume.endswith(":ro") for volume in files)
    assert all((ROOT / volume.split(":")[0]).is_dir() for volume in files)
    assert all(service["tmpfs"] == ["/tmp"] for service in SERVICES.values())
    given = environment("vision-encoder")
    for name in (*FOLDERS, "THUMBNAILS_PATH"):
        assert given[name].startswith((*mounted("vision-encoder"), "/tmp/")), name
    assert "/qdrant/storage" in mounted("qdrant")
    assert "--storage.tsdb.path=/prometheus " in SERVICES["prometheus"]["command"][0]
    assert "/prometheus" in mounted("prometheus")
    grafana = environment("grafana")
    assert all(grafana[f"GF_PATHS_{name}"].startswith("/tmp/") for name in ("DATA", "PLUGINS"))


def test_a_service_has_time_to_drain() -> None:
    seconds = {name: int(service["stop_grace_period"][:-1]) for name, service in SERVICES.items()}
    assert seconds["vision-encoder"] > 60  # the limit of a request
    assert seconds["router"] > 30  # `timeout_graceful_shutdown`
    assert seconds["qdrant"] >= 30


@pytest.mark.parametrize("file", [COMPOSE, GPU], ids=lambda file: file.name)
def test_every_variable_of_a_compose_file_is_documented_and_read(file: Path) -> None:
    text = re.sub(r"(?m)^\s*#.*$", "", file.read_text()).replace("$$", "")
    used = {name for name, _ in VARIABLE.findall(text)}
    assert text.count("$") == len(VARIABLE.findall(text)), "a variable has no default"
    example = set(re.findall(r"(?m)^(?:# )?([A-Z_]+)=", (ROOT / ".env.example").read_text()))
    assert used <= example
    fields = {name.removeprefix("VISION_") if name in PREFIXED else name for name in used}
    assert fields <= FIELDS.keys() | BUILD


@pytest.mark.parametrize("name", OURS)
def test_a_service_gets_only_variables_that_it_reads(name: str) -> None:
    assert environment(name).keys() <= FIELDS.keys() | FOLDERS


def test_every_setting_of_an_operator_reaches_its_service() -> None:
    encoder = {name.upper() for cls in (Settings, RagSettings) for name in cls.model_fields}
    client = {name.upper() for name in ClientSettings.model_fields}
    for service, names in (("vision-encoder", encoder), ("router", client)):
        for name in names - FIXED[service].keys() - UNSET:
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
            given = {name.upper(): v for cls in each for name, v in cls().model_dump().items()}
        differing = {name for name in given if given[name] != defaults[name]}
        assert differing == FIXED[service].keys() - {"PORT"}, service


def test_the_gpu_file_adds_the_gpu_and_its_metrics() -> None:
    services = yaml.safe_load(GPU.read_text())["services"]
    gpu = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert services.pop("vision-encoder") == {
        "environment": {"DEVICE": "${VISION_DEVICE:-cuda}"},
        "deploy": {"resources": {"reservations": {"devices": [gpu]}}},
    }
    exporter = services.pop("dcgm-exporter")
    assert services == {}
    assert exporter["profiles"] == ["monitoring"]
    assert "ports" not in exporter
    resources = exporter["deploy"]["resources"]
    assert resources["reservations"]["devices"] == [{**gpu, "count": "all"}]
    assert resources["limits"].keys() == {"memory", "pids"}
    shared = ("restart", "init", "read_only", "tmpfs", "cap_drop", "security_opt", "networks")
    assert {name: exporter[name] for name in shared} == {
        name: SERVICES["vision-encoder"][name] for name in shared
    }


def test_only_the_profile_starts_the_monitoring() -> None:
    profiled = {name for name, service in SERVICES.items() if "profiles" in service}
    assert profiled == {"prometheus", "grafana"}
    assert all(SERVICES[name]["profiles"] == ["monitoring"] for name in profiled)
    images = [SERVICES[name]["image"] for name in profiled]
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images)


@pytest.mark.service
@pytest.mark.parametrize(("given", "expected"), [("", ""), ("new", "new"), ("new,old", "new")])
def test_prometheus_gets_the_first_key_in_a_file(tmp_path: Path, given: str, expected: str) -> None:
    (script,) = SERVICES["prometheus"]["command"]
    config = yaml.safe_load((ROOT / "deploy/monitoring/prometheus/prometheus.yml").read_text())
    (job,) = (each for each in config["scrape_configs"] if each["job_name"] == "vision-encoder")
    file = job["authorization"]["credentials_file"]
    assert script.count(f"> {file}\n") == 1
    (tmp_path / "prometheus").write_text('#!/bin/sh\necho "$@" > arguments\n')
    (tmp_path / "prometheus").chmod(0o755)
    subprocess.run(
        [*SERVICES["prometheus"]["entrypoint"], script.replace("$$", "$").replace(file, "key")],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "API_KEY": given},
        check=True,
    )
    assert (tmp_path / "key").read_text() == expected
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert "--config.file=/etc/prometheus/prometheus.yml" in (tmp_path / "arguments").read_text()
    assert mounted("prometheus")[0] == "/etc/prometheus"


def test_compose_builds_the_image_that_runs_on_every_supported_driver() -> None:
    build = SERVICES["vision-encoder"]["build"]
    assert (build["context"], build["dockerfile"]) == (".", "deploy/oci/Dockerfile")
    arguments = {name: VARIABLE.sub(r"\2", value) for name, value in build["args"].items()}
    assert arguments == {"VARIANT": "cuda12", "COMPILER": "", "REVISION": ""}
    dockerfile = (ROOT / build["dockerfile"]).read_text()
    assert set(re.findall(r"(?m)^ARG (\w+)", dockerfile)) >= arguments.keys()
    for name in OURS:  # an image without a registry is found here, a published one is pulled
        assert SERVICES[name]["image"] == "${IMAGE:-vision-encoder:latest}"
        assert SERVICES[name]["pull_policy"] == "missing"
