"""The services of docker-compose.yml, and the variables that their containers set."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

COMPOSE = ROOT / "docker-compose.yml"
GPU = ROOT / "docker-compose.gpu.yml"
GPUS = ROOT / "docker-compose.gpus.yml"
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
OURS = ("vision-encoder", "router")
VARIABLE = re.compile(r"\$\{([A-Z_]+):-([^${}]*)\}")

# Variables with a fixed value in the containers, whatever the operator sets.
FIXED = {
    "vision-encoder": {
        "HOST": "0.0.0.0",
        "PORT": "8001",
        "QDRANT_ENABLED": "true",
        "QDRANT_HOST": "http://qdrant",
        "THUMBNAILS_PATH": "/data/thumbnails",
    },
    "router": {"VISION_ENCODER_URL": "http://vision-encoder:8001"},
}
# Folders of libraries; no setting of this project reads them.
FOLDERS = {"HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "BENTOML_HOME"}


def environment(service: str, operator: dict[str, str] | None = None) -> dict[str, str]:
    """Return the variables of a service's container if an operator sets those of `operator`."""
    given = operator or {}
    return {
        name: VARIABLE.sub(lambda found: given.get(found[1]) or found[2], value)
        for name, value in SERVICES[service]["environment"].items()
    }


def mounted(service: str) -> list[str]:
    """Return the folders of a service's container that volumes are mounted on."""
    return [volume.split(":")[1] for volume in SERVICES[service]["volumes"]]


def compose() -> list[str]:
    """Return the command of Docker Compose 2, which needs no daemon to read files."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
            if done.returncode == 0 and not done.stdout.startswith("1."):
                return command
    pytest.skip("Docker Compose 2 or newer is not installed")
