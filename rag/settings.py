"""Settings of image search, from the environment or a `.env` file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from dotenv import dotenv_values
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

_HOST: Final = re.compile(r"[\w.-]+|\[[\da-fA-F:.]+\]")


class RagSettings(BaseSettings):
    """Where image search stores its data. Each field is set by the variable of the same name.

    An empty variable counts as unset.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,  # the input may contain the API key
    )

    qdrant_enabled: bool = Field(
        False,
        description="Serve image search (`/images` and `/search`). `make serve` and `make demo` "
        "turn it on.",
    )
    qdrant_host: str | None = Field(
        None,
        description="Host name or address of a Qdrant server (1.16 or newer), optionally with "
        "`http://` or `https://`. If it is not set, the service uses the embedded store.",
    )
    qdrant_port: int = Field(6333, ge=1, le=65535, description="HTTP port of the Qdrant server.")
    qdrant_grpc_port: int = Field(
        6334, ge=1, le=65535, description="gRPC port of the Qdrant server."
    )
    qdrant_api_key: SecretStr | None = Field(
        None,
        description="API key for the Qdrant server. Setting it turns on TLS, unless `QDRANT_HOST` "
        "starts with `http://`.",
    )
    qdrant_path: Path = Field(
        Path(".data/qdrant"),
        description="Folder of the embedded store. Only one process can use it at a time.",
    )
    thumbnails_path: Path = Field(
        Path(".data/thumbnails"),
        description="Folder for the thumbnails that the search page shows.",
    )
    files_paths: str = Field(
        "",
        description="Folders below which the service may read pictures' files, separated by "
        "commas: a picture without a preview gets it from its `image_path`. If it is not set, the "
        "service reads no such file, and makes previews from uploads only.",
    )
    image_search_collection: str = Field(
        "daarion_images",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="Collection to use when a request or command does not name one.",
    )
    image_search_default_top_k: int = Field(
        5,
        ge=1,
        le=1000,
        description="Number of hits to return when a search does not set `top_k`.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (there are none)
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read `.env` without expanding ${NAME}: a stranger's file could send that variable."""
        assert isinstance(dotenv_settings, DotEnvSettingsSource)  # noqa: S101 (for mypy)
        path = dotenv_settings.env_file
        lines = dotenv_values(str(path), interpolate=False) if path else {}
        literal = {name.lower(): value for name, value in lines.items() if value}
        return init_settings, env_settings, InitSettingsSource(settings_cls, literal)

    @property
    def from_env_file(self) -> set[str]:
        """The fields whose values come from `.env`, not from the environment."""
        return self.model_fields_set - type(self)(_env_file=None).model_fields_set

    def check_sources(self) -> None:
        """Raise `ValueError` if either QDRANT_HOST or QDRANT_API_KEY comes from `.env`.

        For programs that run in any folder: the file there may come from a stranger, to whose
        server the user's key must not go.
        """
        of_file = self.from_env_file & {"qdrant_host", "qdrant_api_key"}
        if self.qdrant_host and self.key and len(of_file) == 1:
            file, environment = os.path.abspath(".env"), "the environment"
            host, key = (file, environment) if "qdrant_host" in of_file else (environment, file)
            raise ValueError(
                f"QDRANT_HOST comes from {host}, but QDRANT_API_KEY from {key}: the command does "
                "not send a key to a server from another source, because the .env file of a "
                "stranger could redirect it. Set both in the environment, or both in .env"
            )

    @field_validator("files_paths")
    @classmethod
    def _check_folders(cls, given: str) -> str:
        if not all(folder.startswith("/") for folder in given.split(",") if given):
            raise ValueError("must be absolute paths of folders, separated by commas")
        return given

    @property
    def files_folders(self) -> list[Path]:
        """The folders of FILES_PATHS."""
        return [Path(os.path.normpath(name)) for name in self.files_paths.split(",") if name]

    @property
    def key(self) -> str:
        """The API key of the Qdrant server, or an empty string."""
        return self.qdrant_api_key.get_secret_value() if self.qdrant_api_key else ""

    def server(self) -> tuple[str, str]:
        """Return the scheme and host of the Qdrant server.

        If QDRANT_HOST has no scheme, the connection is encrypted when there is an API key, as in
        qdrant-client. Raises `ValueError` if QDRANT_HOST is not a host name or address.
        """
        scheme, _, host = (self.qdrant_host or "").rstrip("/").rpartition("://")
        if scheme not in ("", "http", "https") or not _HOST.fullmatch(host):
            raise ValueError(
                f"QDRANT_HOST is {self.qdrant_host!r}, but it must be a host name or address, "
                "optionally with http:// or https:// before it. Set the ports with QDRANT_PORT "
                "and QDRANT_GRPC_PORT"
            )
        return scheme or ("https" if self.key else "http"), host

    @property
    def store(self) -> str:
        """A description of the store for the log."""
        if not self.qdrant_enabled:
            return "off"
        return self.qdrant_host or f"embedded at {self.qdrant_path}"

    def check_workers(self, workers: int) -> None:
        """Exit with an error if several workers would share the embedded store."""
        if workers > 1 and self.qdrant_enabled and not self.qdrant_host:
            raise SystemExit(
                f"WORKERS={workers}: several workers cannot share the embedded store at "
                "QDRANT_PATH. Set WORKERS=1, or set QDRANT_HOST to use a Qdrant server"
            )
