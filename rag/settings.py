"""Settings of image search, from the environment or a `.env` file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

_HOST: Final = re.compile(r"[\w.-]+|\[[\da-fA-F:.]+\]")


class RagSettings(BaseSettings):
    """Where pictures are indexed and searched. Every field is a variable of the same name.

    An empty variable counts as unset.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,  # the key may be in it
    )

    qdrant_enabled: bool = Field(False, description="Serve search and its routes.")
    qdrant_host: str | None = Field(
        None, description="A Qdrant server; without it the embedded store at QDRANT_PATH."
    )
    qdrant_port: int = Field(6333, ge=1, le=65535)
    qdrant_grpc_port: int = Field(6334, ge=1, le=65535)
    qdrant_api_key: SecretStr | None = None
    qdrant_path: Path = Field(Path(".data/qdrant"), description="Folder of the embedded store.")
    thumbnails_path: Path = Field(
        Path(".data/thumbnails"), description="Folder of the search page's previews."
    )
    image_search_collection: str = Field("daarion_images", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    image_search_default_top_k: int = Field(5, ge=1, le=1000)

    @property
    def key(self) -> str:
        """The API key of the Qdrant server, empty without one."""
        return self.qdrant_api_key.get_secret_value() if self.qdrant_api_key else ""

    def server(self) -> tuple[str, str]:
        """Return scheme and host of the Qdrant server. Raises `ValueError` when it is no host.

        Without `http://` or `https://` before it the connection is encrypted when there is an API
        key, as in qdrant-client.
        """
        scheme, _, host = (self.qdrant_host or "").rstrip("/").rpartition("://")
        if scheme not in ("", "http", "https") or not _HOST.fullmatch(host):
            raise ValueError(
                f"QDRANT_HOST is {self.qdrant_host!r}: it must be a host name or address, with "
                "http:// or https:// before it if need be; the ports are QDRANT_PORT and "
                "QDRANT_GRPC_PORT"
            )
        return scheme or ("https" if self.key else "http"), host

    @property
    def store(self) -> str:
        """Where the pictures are, in words."""
        if not self.qdrant_enabled:
            return "off"
        return self.qdrant_host or f"embedded at {self.qdrant_path}"

    def check_workers(self, workers: int) -> None:
        """Raise `SystemExit` unless so many processes can use the store."""
        if workers > 1 and self.qdrant_enabled and not self.qdrant_host:
            raise SystemExit(
                f"WORKERS={workers} cannot share the embedded store at QDRANT_PATH, which one "
                "process owns: set QDRANT_HOST to a Qdrant server, or WORKERS=1"
            )
