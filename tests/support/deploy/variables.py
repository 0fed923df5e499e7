"""The variables that the settings read."""

from __future__ import annotations

from pydantic_settings import BaseSettings

from bento import Settings
from rag import RagSettings
from router_client import ClientSettings

ALL: list[type[BaseSettings]] = [Settings, RagSettings, ClientSettings]
PREFIXED = {"VISION_MODEL_NAME", "VISION_MODEL_PRETRAINED", "VISION_DEVICE"}
# Compose itself reads these, to build the image.
BUILD = {"IMAGE", "VARIANT", "COMPILER", "REVISION"}
FIELDS = {name.upper(): field for cls in ALL for name, field in cls.model_fields.items()}
