"""Settings of the encoder and its service, from the environment or a `.env` file."""

from __future__ import annotations

import re
from typing import Final, Literal

from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

_HTTP_MS: Final = 8  # of the event loop and the threads beside it for a request, on shared cores


def _or_prefixed(name: str) -> AliasChoices:
    """Return a variable's name and the one that it has in `.env` and docker-compose.yml."""
    return AliasChoices(name, f"vision_{name}")


class Settings(BaseSettings):
    """What to load and how to serve it. Every field is a variable of the same name.

    An empty variable is as one that is not set.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        hide_input_in_errors=True,  # the key may be in it
    )

    model_name: str = Field(
        "ViT-L-14",
        validation_alias=_or_prefixed("model_name"),
        description="What OpenCLIP takes: a name, hf-hub:org/name, local-dir:PATH.",
    )
    model_pretrained: str = Field(
        "openai",
        validation_alias=_or_prefixed("model_pretrained"),
        description="A pretrained tag or a checkpoint file.",
    )
    device: str = Field(
        "auto",
        validation_alias=_or_prefixed("device"),
        pattern=r"^(auto|cpu|cuda|cuda:\d+)$",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto measures, for each tower, what is faster and faithful."
    )
    compile: bool = Field(False, description="torch.compile the image tower before /readyz.")
    normalize_embeddings: bool = Field(True, description="When a request does not say.")
    max_batch_size: int = Field(32, ge=1, le=1024)
    max_queue_ms: int = Field(
        10_000, ge=0, description="Beyond this predicted wait the answer is 429."
    )
    max_queue_bytes: int = Field(
        256_000_000, ge=1, description="Beyond these bytes of requests the answer is 429."
    )
    max_request_bytes: int = Field(64_000_000, ge=1)
    max_request_items: int = Field(1000, ge=1, description="Texts or images in one request.")
    max_image_bytes: int = Field(20_000_000, ge=1)
    max_image_pixels: int = Field(100_000_000, ge=1)
    allow_image_urls: bool = Field(False, description="Fetch images from public addresses.")
    image_url_allowed_hosts: str = Field(
        "",
        pattern=r"^[^\s/,]+(,[^\s/,]+)*$|^$",
        description="The only hosts to fetch from, with commas between; they may be private.",
    )
    image_url_allowed_ports: str = Field("80,443", pattern=r"^\d{1,5}(,\d{1,5})*$")
    host: str = Field("127.0.0.1", description="An IP address; 0.0.0.0 listens on all.")
    port: int = Field(8001, ge=1, le=65535)
    workers: int = Field(1, ge=1, description="Each holds its own copy of the model.")
    api_key: SecretStr | None = Field(
        None, description="One key or several, with commas between; without one all may ask."
    )
    metrics_public: bool = Field(False, description="Answer /metrics without a key.")
    ui_public: bool = Field(
        False, description="Answer the search page and /docs, which hold no data, without a key."
    )
    cors_allowed_origins: str = Field(
        "", description="Origins whose pages may call this service, with commas between."
    )

    @field_validator("api_key")
    @classmethod
    def _keys_that_a_header_can_carry(cls, given: SecretStr | None) -> SecretStr | None:
        for key in _split(given):
            if not re.fullmatch("[!-~]+", key):
                raise ValueError(
                    "one key or several with commas between are needed, none of them empty, of "
                    "ASCII letters, digits and signs, without white space"
                )
        return given

    @field_validator("cors_allowed_origins")
    @classmethod
    def _exact_origins(cls, given: str) -> str:
        if given and not all(
            re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?", origin)
            for origin in given.split(",")
        ):
            raise ValueError(
                "origins such as https://pictures.example or http://localhost:3000 are needed, "
                "in small letters, with commas between, without path, white space or *"
            )
        return given

    @property
    def api_keys(self) -> list[str]:
        return _split(self.api_key)

    @property
    def max_requests(self) -> int:
        """How many requests are worked on at a time.

        A small model is quicker than HTTP, and then the queues of the towers do not see what waits.
        """
        return max(64, self.max_queue_ms // _HTTP_MS)

    @property
    def allowed_origins(self) -> list[str]:
        return self.cors_allowed_origins.split(",") if self.cors_allowed_origins else []

    @model_validator(mode="after")
    def _each_image_fits(self) -> Settings:
        if not self.max_image_bytes * 4 // 3 < self.max_request_bytes <= self.max_queue_bytes:
            raise ValueError(
                f"MAX_IMAGE_BYTES={self.max_image_bytes} and a third (base64) must be less than "
                f"MAX_REQUEST_BYTES={self.max_request_bytes}, and that no more than "
                f"MAX_QUEUE_BYTES={self.max_queue_bytes}"
            )
        return self


def _split(keys: SecretStr | None) -> list[str]:
    return keys.get_secret_value().split(",") if keys else []
