"""Where the service is: arguments of a client, or settings from the environment or `.env`."""

from __future__ import annotations

from typing import Final, NamedTuple

import httpx
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from bento.contract.errors import InvalidInput

LONGEST_TIMEOUT: Final = 86_400.0  # seconds


class ClientSettings(BaseSettings):
    """Each field is the variable of the same name; an empty variable counts as unset."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,  # the key may be in it
    )

    vision_encoder_url: str = Field("http://127.0.0.1:8001", pattern=r"^https?://[^/\s]+")
    vision_encoder_timeout: float = Field(60.0, gt=0, le=LONGEST_TIMEOUT, description="Seconds.")
    api_key: SecretStr | None = Field(
        None, description="Sent as a bearer token; the first of several."
    )


class Connection(NamedTuple):
    """How to reach the service."""

    url: httpx.URL
    headers: dict[str, str] | None
    timeout: float  # seconds of a call


def connection(base_url: str | None, timeout: float | None, api_key: str | None) -> Connection:
    """Return how to reach the service; settings replace what is None. Raises `InvalidInput`."""
    settings = ClientSettings()
    seconds = settings.vision_encoder_timeout if timeout is None else timeout
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise InvalidInput(f"timeout is {seconds}; allowed: above 0, to {LONGEST_TIMEOUT} s")
    if api_key is None and settings.api_key:
        # a service that takes several keys has them in the same variable
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
            "the address of the vision encoder (VISION_ENCODER_URL) must be a URL such as "
            "http://gpu-host:8001"
        )
    return url


def _authorization(key: str | None) -> dict[str, str] | None:
    """Return the header that carries a key. No error shows the key."""
    key = (key or "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable()):
        raise InvalidInput("the API key (API_KEY) has characters that no header can carry")
    return {"Authorization": f"Bearer {key}"}
