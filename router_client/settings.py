"""Settings of the client, from the environment or a `.env` file."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ClientSettings(BaseSettings):
    """Where the service is. Every field is a variable of the same name."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    vision_encoder_url: str = "http://127.0.0.1:8001"
    vision_encoder_timeout: float = Field(60.0, gt=0, description="Seconds.")
