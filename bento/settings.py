"""Settings of the encoder and its service, from the environment or a `.env` file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What to load and how to serve it. Every field is a variable of the same name."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    model_name: str = Field(
        "ViT-L-14", description="What OpenCLIP takes: a name, hf-hub:org/name, local-dir:PATH."
    )
    model_pretrained: str = Field("openai", description="A pretrained tag or a checkpoint file.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda|cuda:\d+)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto is float32 on a CPU and float16 on a GPU."
    )
    normalize_embeddings: bool = Field(True, description="When a request does not say.")
    max_batch_size: int = Field(32, ge=1, le=1024)
    max_image_bytes: int = Field(20_000_000, ge=1)
    max_image_pixels: int = Field(100_000_000, ge=1)
    allow_image_urls: bool = Field(False, description="Fetch images from public addresses.")
    host: str = Field("127.0.0.1", description="An IP address; 0.0.0.0 listens on all.")
    port: int = Field(8001, ge=1, le=65535)
    workers: int = Field(1, ge=1, description="Each holds its own copy of the model.")
