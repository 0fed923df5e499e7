"""The client's settings, and how its arguments override them."""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

import httpx
from dotenv import dotenv_values
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from bento.contract.errors import InvalidInput

LONGEST_TIMEOUT: Final = 86_400.0  # seconds


class ClientSettings(BaseSettings):
    """Read each field from the variable of the same name, from the environment or from `.env`.

    An empty variable counts as unset.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,  # it may contain the API key
    )

    vision_encoder_url: str = Field(
        "http://127.0.0.1:8001",
        description="Address at which the client, the router and `vision-rag` reach the service.",
    )
    vision_encoder_timeout: float = Field(
        60.0,
        gt=0,
        le=LONGEST_TIMEOUT,
        description="Seconds within which a client's call must end, including all its retries.",
    )
    api_key: SecretStr | None = Field(
        None,
        description="API key that clients send as a bearer token. If it lists several keys, "
        "separated by commas, clients send the first. The service accepts each of them, and "
        "requires one on every route except the probes.",
    )

    @property
    def is_default(self) -> bool:
        """Whether the address is the default one."""
        default: str = type(self).model_fields["vision_encoder_url"].default
        return self.vision_encoder_url.rstrip("/") == default

    router_api_key: SecretStr | None = Field(
        None,
        min_length=1,
        description="API key that the reference router requires on every route except `/health`, "
        "as a bearer token. It differs from `API_KEY`, which the router sends to the service.",
    )

    @field_validator("vision_encoder_url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not re.match(r"https?://[^/\s]", url):
            raise ValueError("it must be an http:// or https:// URL, such as http://gpu-host:8001")
        return url

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


class Connection(NamedTuple):
    """The address and the credentials of the service, and the timeout of a call."""

    url: httpx.URL
    headers: dict[str, str] | None
    timeout: float  # seconds


def connection(base_url: str | None, timeout: float | None, api_key: str | None) -> Connection:
    """Complete a client's arguments from its settings.

    Raises `InvalidInput` for invalid ones, and rather than send a key to an address that comes from
    another source: from `.env`, and the key from the environment, or the other way round.
    """
    settings = ClientSettings()
    seconds = settings.vision_encoder_timeout if timeout is None else timeout
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise InvalidInput(
            f"timeout is {seconds} s; it must be above 0 and at most {LONGEST_TIMEOUT:,.0f} s"
        )
    key_is_argument = api_key is not None
    if api_key is None and settings.api_key:
        # The service reads all its keys from the same variable.
        api_key = settings.api_key.get_secret_value().partition(",")[0]
    url = _url(settings.vision_encoder_url if base_url is None else base_url)
    headers = _authorization(api_key)
    if headers and base_url is None:
        _check_sources(settings, key_is_argument=key_is_argument)
    return Connection(url, headers, seconds)


def _check_sources(settings: ClientSettings, *, key_is_argument: bool) -> None:
    """Raise `InvalidInput` if either the address or the key comes from `.env`.

    The file may come from a stranger, to whose server the user's key must not go. The default
    address is on this machine, and no stranger's.
    """
    if settings.is_default:
        return
    of_file = settings.from_env_file
    file, environment = os.path.abspath(".env"), "the environment"
    url = file if "vision_encoder_url" in of_file else environment
    key = file if "api_key" in of_file else environment
    if key_is_argument:
        key = "an argument"
    if (url == file) != (key == file):
        raise InvalidInput(
            f"VISION_ENCODER_URL comes from {url}, but the key (API_KEY) from {key}: the client "
            "does not send a key to an address from another source, because the .env file of a "
            "stranger could redirect it. Set both in the environment, or both in .env",
            code="mixed_sources",
        )


def _url(given: str) -> httpx.URL:
    try:
        url = httpx.URL(given)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput(
            "the address of the vision encoder (VISION_ENCODER_URL) is not an http:// or "
            "https:// URL; an example: http://gpu-host:8001"
        )
    return url


def _authorization(key: str | None) -> dict[str, str] | None:
    """Return the header that carries the API key. Error messages never contain the key."""
    key = (key or "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable()):
        raise InvalidInput(
            "the API key (API_KEY) has characters that an HTTP header cannot carry; "
            "use printable ASCII"
        )
    return {"Authorization": f"Bearer {key}"}
