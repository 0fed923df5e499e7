"""The services of docker-compose.yml, and the variables that their containers set."""

from __future__ import annotations

from typing import Any

import yaml

from tests.support.paths import ROOT

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

# What the containers say for themselves, whatever the operator sets for a service without them.
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
# Variables of libraries, not of ours.
FOLDERS = {"HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "BENTOML_HOME"}
