"""The client's settings, and how its arguments override them."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import httpx
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

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

    @field_validator("vision_encoder_url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not re.match(r"https?://[^/\s]", url):
            raise ValueError("it must be an http:// or https:// URL, such as http://gpu-host:8001")
        return url


class Connection(NamedTuple):
    """The address and the credentials of the service, and the timeout of a call."""

    url: httpx.URL
    headers: dict[str, str] | None
    timeout: float  # seconds


def connection(base_url: str | None, timeout: float | None, api_key: str | None) -> Connection:
    """Complete a client's arguments from its settings. Raises `InvalidInput` for invalid ones."""
    settings = ClientSettings()
    seconds = settings.vision_encoder_timeout if timeout is None else timeout
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise InvalidInput(
            f"timeout is {seconds} s; it must be above 0 and at most {LONGEST_TIMEOUT:,.0f} s"
        )
    if api_key is None and settings.api_key:
        # The service reads all its keys from the same variable.
        api_key = settings.api_key.get_secret_value().partition(",")[0]
    url = _url(settings.vision_encoder_url if base_url is None else base_url)
    return Connection(url, _authorization(api_key), seconds)


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
