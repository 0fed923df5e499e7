"""Settings of the client, from the environment or a `.env` file."""

from __future__ import annotations

from typing import Final

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

LONGEST_TIMEOUT: Final = 86_400.0  # seconds


class ClientSettings(BaseSettings):
    """Where the service is. Every field is a variable of the same name; empty is as unset."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,  # the key may be in it
    )

    vision_encoder_url: str = Field("http://127.0.0.1:8001", pattern=r"^https?://[^/\s]+")
    vision_encoder_timeout: float = Field(60.0, gt=0, le=LONGEST_TIMEOUT, description="Seconds.")
    api_key: SecretStr | None = Field(
        None, description="Sent as a bearer token; of several the first."
    )
