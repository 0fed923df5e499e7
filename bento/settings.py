"""Settings of the service, from environment variables or a `.env` file."""

from __future__ import annotations

import ipaddress
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

from bento.contract.routes import ROUTES

_TOP_PATHS: Final = {route.path.split("/")[1] for route in ROUTES}
_HTTP_MS: Final = 8  # that the event loop and its threads take for one request, on shared cores


def _or_prefixed(name: str) -> AliasChoices:
    return AliasChoices(name, f"vision_{name}")


class Settings(BaseSettings):
    """The model to load and how to serve it. Each field is set by the variable of the same name.

    An empty variable counts as unset.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        hide_input_in_errors=True,  # the input may contain the API key
    )

    model_name: str = Field(
        "ViT-L-14",
        validation_alias=_or_prefixed("model_name"),
        description="Model to serve: an OpenCLIP name, `hf-hub:org/name` or `local-dir:PATH`.",
    )
    model_pretrained: str = Field(
        "openai",
        validation_alias=_or_prefixed("model_pretrained"),
        description="Weights to load: an OpenCLIP pretrained tag, or the path of a checkpoint.",
    )
    device: str = Field(
        "auto",
        validation_alias=_or_prefixed("device"),
        pattern=r"^(auto|cpu|cuda|cuda:\d+)$",
        description="Device to run on: `cpu`, `cuda`, `cuda:N` or `auto`. `auto` uses the first "
        "GPU, or the CPU if there is none.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number format of the model: `float32`, `bfloat16`, `float16` or `auto`. "
        "`auto` measures at start and uses a faster format for a tower if the cosine to float32 "
        "stays at least 0.999 (float16: 0.9999).",
    )
    compile: bool = Field(
        False,
        description="Compile the image tower with `torch.compile` before `/readyz` answers 200. "
        "Needs a C++ compiler. With 16-bit weights on a CPU, it is slower than without.",
    )
    normalize_embeddings: bool = Field(
        True, description="L2-normalize embeddings when a request does not set `normalize`."
    )
    max_batch_size: int = Field(
        32,
        ge=1,
        le=1024,
        description="Maximum number of texts or images in one batch of the model.",
    )
    max_queue_ms: int = Field(
        10_000,
        ge=0,
        description="Maximum predicted time to the answer in milliseconds; beyond it, the answer "
        "is 429. It also bounds the number of concurrent requests: one for each 8 ms, but at least "
        "64. A request that finds an empty queue is never shed.",
    )
    max_connections: int = Field(
        1000,
        ge=10,
        description="Maximum number of open connections of a worker. One more closes the one "
        "that has been idle for the longest time; if none is idle, it is answered 429.",
    )
    max_queue_bytes: int = Field(
        256_000_000,
        ge=1,
        description="Maximum bytes of requests that the service holds at a time; beyond it, the "
        "answer is 429.",
    )
    max_request_bytes: int = Field(
        64_000_000,
        ge=1,
        description="Maximum bytes of a request body, and of all images that one request names by "
        "URL; beyond it, the answer is 413.",
    )
    max_request_items: int = Field(
        1000,
        ge=1,
        description="Maximum number of texts or images in one request; beyond it, the answer is "
        "413.",
    )
    max_image_bytes: int = Field(
        20_000_000,
        ge=1,
        description="Maximum bytes of an image file; larger files are rejected before decoding.",
    )
    max_image_pixels: int = Field(
        100_000_000,
        ge=1,
        description="Maximum pixels of an image; larger images are rejected before decoding, which "
        "takes up to 9 bytes per pixel. Files with less than 1 byte per 32 pixels may have 33 "
        "million. TIFF and progressive JPEG may have two thirds of these limits, WebP half.",
    )
    allow_image_urls: bool = Field(
        False, description="Fetch the images that requests name by URL, from public addresses only."
    )
    image_url_allowed_hosts: str = Field(
        "",
        pattern=r"^[^\s/,]+(,[^\s/,]+)*$|^$",
        description="Comma-separated list of the only hosts to fetch images from. They may have "
        "private addresses.",
    )
    image_url_allowed_ports: str = Field(
        "80,443",
        pattern=r"^\d{1,5}(,\d{1,5})*$",
        description="Comma-separated list of the ports to fetch images from.",
    )
    host: str = Field(
        "127.0.0.1",
        description="IP address to listen on. `0.0.0.0` listens on all; the built image does.",
    )
    port: int = Field(8001, ge=1, le=65535, description="Port to listen on.")
    workers: int = Field(
        1,
        ge=1,
        description="Number of worker processes. Each loads its own copy of the model. With a "
        "large GPU and spare cores, 4 workers answer 2 to 3 times as many requests as 1.",
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto",
        description="Format of the log: `json`, `text` or `auto`. `auto` writes text to a terminal "
        "and JSON elsewhere.",
    )
    api_key: SecretStr | None = Field(
        None,
        description="API key, or several separated by commas. Every route except the probes then "
        "requires one of them.",
    )
    metrics_public: bool = Field(False, description="Serve `/metrics` without an API key.")
    ui_public: bool = Field(
        False,
        description="Serve the search page (`/ui`) and `/docs`, which contain no data, without an "
        "API key.",
    )
    cors_allowed_origins: str = Field(
        "",
        description="Comma-separated list of sites whose pages may call the service, such as "
        "`https://pictures.example`.",
    )
    root_path: str = Field(
        "",
        description="Path under which a reverse proxy serves the service, such as `/vision`. The "
        "proxy may remove it from the requests or pass it on.",
    )
    forwarded_allow_ips: str = Field(
        "",
        description="Comma-separated list of the addresses and networks of reverse proxies, such "
        "as `10.0.0.0/8`, or `*` for all. The service believes `X-Forwarded-For`, "
        "`X-Forwarded-Host` and `X-Forwarded-Proto` only from them.",
    )
    keep_alive_seconds: int = Field(
        75,
        ge=1,
        le=3600,
        description="Seconds for which the service keeps an idle connection open after an answer. "
        "Must be more than the idle timeout of a load balancer in front of it, which is usually "
        "60 s.",
    )

    @field_validator("api_key")
    @classmethod
    def _check_keys(cls, given: SecretStr | None) -> SecretStr | None:
        for key in _split(given):
            if not re.fullmatch("[!-~]+", key):
                raise ValueError(
                    "must be one key, or several keys separated by commas. A key may contain ASCII "
                    "letters, digits and punctuation, but no white space, and must not be empty"
                )
        return given

    @field_validator("cors_allowed_origins")
    @classmethod
    def _check_origins(cls, given: str) -> str:
        if given and not all(
            re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?", origin)
            for origin in given.split(",")
        ):
            raise ValueError(
                "must be a comma-separated list of lower-case origins such as "
                "https://pictures.example or http://localhost:3000, without paths, spaces or *"
            )
        return given

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, given: str) -> str:
        path = given.rstrip("/")
        if not re.fullmatch(r"(/(?!\.+(/|$))[A-Za-z0-9_~.-]+)*", path):
            raise ValueError(
                "must be a path such as /vision, made of /, ASCII letters, digits, -, ., _ and ~"
            )
        if path and path.split("/")[1] in _TOP_PATHS:
            # a proxy that removes the path would send requests that look as if it had not
            raise ValueError("must not begin like a route of the service: choose another path")
        return path

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _check_proxies(cls, given: str) -> str:
        try:
            for proxy in given.split(",") if given not in ("", "*") else ():
                ipaddress.ip_network(proxy)
        except ValueError:
            raise ValueError(
                "must be * or a comma-separated list of IP addresses and networks such as "
                "127.0.0.1 or 10.0.0.0/8, without spaces and host names"
            ) from None
        return given

    @property
    def api_keys(self) -> list[str]:
        return _split(self.api_key)

    @property
    def max_requests(self) -> int:
        """The most requests to handle at a time.

        A small model is faster than HTTP. Requests then wait outside the queues of the towers,
        where `max_queue_ms` alone does not limit them.
        """
        return max(64, self.max_queue_ms // _HTTP_MS)

    @property
    def allowed_origins(self) -> list[str]:
        return self.cors_allowed_origins.split(",") if self.cors_allowed_origins else []

    @model_validator(mode="after")
    def _check_byte_limits(self) -> Settings:
        if not self.max_image_bytes * 4 // 3 < self.max_request_bytes <= self.max_queue_bytes:
            raise ValueError(
                f"MAX_IMAGE_BYTES={self.max_image_bytes} plus a third (base64) must be less than "
                f"MAX_REQUEST_BYTES={self.max_request_bytes}, which must be at most "
                f"MAX_QUEUE_BYTES={self.max_queue_bytes}"
            )
        return self


def _split(keys: SecretStr | None) -> list[str]:
    return keys.get_secret_value().split(",") if keys else []
