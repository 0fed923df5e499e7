"""The variables that the settings read, and the README's table of them."""

from __future__ import annotations

import re

from pydantic_settings import BaseSettings

from bento import Settings
from rag import RagSettings
from router_client import ClientSettings
from tests.support.paths import ROOT

ALL: list[type[BaseSettings]] = [Settings, RagSettings, ClientSettings]
PREFIXED = {"VISION_MODEL_NAME", "VISION_MODEL_PRETRAINED", "VISION_DEVICE"}
FIELDS = {name.upper(): field for cls in ALL for name, field in cls.model_fields.items()}


def settings_table() -> dict[str, str]:
    """Return the variables of the README's table with their defaults as written."""
    section = (ROOT / "README.md").read_text().split("## Settings")[1].split("## ")[0]
    found = {}
    for names, defaults in re.findall(r"^\| (`[A-Z_`, ]+`) \|([^|]*)\|", section, re.M):
        values = re.findall(r"`([^`]+)`", defaults)
        for i, name in enumerate(re.findall(r"`([A-Z_]+)`", names)):
            found[name] = values[i] if values else ""
    return found
