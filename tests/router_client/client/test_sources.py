"""Where the address and the key come from: arguments, the environment or a `.env` file."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_client import ClientSettings, InvalidInput
from router_client.client.settings import connection
from router_client.router.providers import build_provider_registry

FOREIGN = "http://foreign.test"
MINE = "http://mine.test"


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".env"


def sent_key(base_url: str | None = None, api_key: str | None = None) -> str | None:
    """Return the key that a client would send; None if it sends no key."""
    headers = connection(base_url, None, api_key).headers
    return headers["Authorization"].removeprefix("Bearer ") if headers else None


U, K = f"VISION_ENCODER_URL={FOREIGN}\n", "API_KEY=theirs\n"
DEFAULT = "VISION_ENCODER_URL=http://127.0.0.1:8001/\n"


@pytest.mark.parametrize(
    ("file", "environment", "arguments", "key"),
    [
        # the same source
        (U + K, {}, {}, "theirs"),
        ("", {"VISION_ENCODER_URL": MINE, "API_KEY": "mine"}, {}, "mine"),
        (U + K, {"VISION_ENCODER_URL": MINE, "API_KEY": "mine"}, {}, "mine"),
        # the default address, even if it is written down
        ("", {"API_KEY": "mine"}, {}, "mine"),
        (DEFAULT, {"API_KEY": "mine"}, {}, "mine"),
        (K, {}, {}, "theirs"),
        (DEFAULT, {}, {"api_key": "mine"}, "mine"),
        # an address in the program is the user's own
        (U, {"API_KEY": "mine"}, {"base_url": MINE}, "mine"),
        (U + K, {}, {"base_url": MINE}, "theirs"),
        (U, {}, {"base_url": MINE, "api_key": "mine"}, "mine"),
        ("", {"VISION_ENCODER_URL": MINE}, {"api_key": "mine"}, "mine"),
        # no key
        (U, {}, {}, None),
        (U, {"API_KEY": ""}, {}, None),
        (U, {"API_KEY": "mine"}, {"api_key": ""}, None),
        # different sources
        (U, {"API_KEY": "mine"}, {}, InvalidInput),
        (U + K, {"API_KEY": "mine"}, {}, InvalidInput),
        (U, {}, {"api_key": "mine"}, InvalidInput),
        (U + K, {}, {"api_key": "mine"}, InvalidInput),
        (K, {"VISION_ENCODER_URL": MINE}, {}, InvalidInput),
        (U + K, {"VISION_ENCODER_URL": MINE}, {}, InvalidInput),
    ],
)
def test_a_key_goes_only_to_an_address_from_the_same_source(
    env_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    environment: dict[str, str],
    arguments: dict[str, str],
    key: str | type[InvalidInput] | None,
) -> None:
    env_file.write_text(file)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if key is not InvalidInput:
        assert sent_key(**arguments) == key
        return
    with pytest.raises(InvalidInput) as error:
        sent_key(**arguments)
    assert error.value.code == "mixed_sources"
    assert str(env_file) in str(error.value)
    assert "mine" not in str(error.value)
    assert "theirs" not in str(error.value)


@pytest.mark.parametrize(
    "file",
    [
        f"VISION_ENCODER_URL={FOREIGN}\nAPI_KEY=${{API_KEY}}\n",
        f"VISION_ENCODER_URL={FOREIGN}/${{API_KEY}}\nAPI_KEY=x\n",
        f'export VISION_ENCODER_URL="{FOREIGN}/${{SECRET:-x}}"\nAPI_KEY="${{SECRET}}"\n',
    ],
)
def test_env_file_cannot_read_variables_of_the_environment(
    env_file: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setenv("SECRET", "precious")
    env_file.write_text(file.replace("API_KEY}", "SECRET}"))
    given = connection(None, None, None)
    assert "precious" not in f"{given.url}{given.headers}"
    assert "${SECRET" in (str(given.headers) + ClientSettings().vision_encoder_url)


def test_env_file_is_read_like_before(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env_file.write_text("# a comment\nexport api_key='a,b'\nVISION_ENCODER_TIMEOUT=7\nOTHER=1\n")
    settings = ClientSettings()
    assert (settings.vision_encoder_timeout, sent_key()) == (7, "a")
    assert settings.from_env_file == {"api_key", "vision_encoder_timeout"}
    monkeypatch.setenv("VISION_ENCODER_TIMEOUT", "8")
    assert ClientSettings().vision_encoder_timeout == 8
    assert ClientSettings().from_env_file == {"api_key"}
    env_file.write_text("API_KEY=\n")
    assert sent_key() is None
    env_file.unlink()
    env_file.mkdir()  # the folder of a virtual environment
    assert sent_key() is None


def test_the_router_does_not_start_with_a_key_from_another_source(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file.write_text(U)
    build_provider_registry()
    monkeypatch.setenv("API_KEY", "mine")
    with pytest.raises(InvalidInput, match="VISION_ENCODER_URL comes from"):
        build_provider_registry()
