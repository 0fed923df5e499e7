"""A `.env` file in the folder where the command runs, which may come from a stranger."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rag import RagSettings
from rag.cli.errors import MESSAGES, WORDS
from rag.cli.parser import main


class Foreign(ThreadingHTTPServer):
    """A server that keeps the requests that it gets, and answers 500."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Foreign)
        self.server.requests.append(f"{self.path} {self.headers}")
        self.send_error(500)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    with Foreign() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"picture")
    return tmp_path / ".env"


@pytest.mark.parametrize("command", [["index", "a.png"], ["search", "--image", "a.png"], ["stats"]])
def test_a_foreign_address_gets_neither_the_key_nor_the_pictures(
    env_file: Path,
    foreign: Foreign,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    env_file.write_text(f"VISION_ENCODER_URL={foreign.url}\n")
    monkeypatch.setenv("API_KEY", "precious")
    assert main(command) == 1
    first, details = capsys.readouterr().err.splitlines()
    assert first == f"error: {MESSAGES['mixed_sources'].en}"
    assert str(env_file) in details
    assert foreign.requests == []
    env_file.write_text(f"VISION_ENCODER_URL={foreign.url}\nAPI_KEY=theirs")
    assert main(command) == 1
    assert foreign.requests == []
    monkeypatch.delenv("API_KEY")
    assert main(command) == 1
    assert "Bearer theirs" in foreign.requests[0]


def test_an_address_from_a_file_is_named_before_anything_is_sent(
    env_file: Path,
    foreign: Foreign,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    env_file.write_text(f"VISION_ENCODER_URL={foreign.url}\n")
    main(["stats"])
    line = WORDS["address"].en.format(foreign.url, env_file)
    assert capsys.readouterr().err.startswith(f"{line}\n")
    monkeypatch.setenv("VISION_ENCODER_URL", foreign.url)
    main(["stats"])
    assert line not in capsys.readouterr().err


MINE = {"QDRANT_HOST": "http://127.0.0.1", "QDRANT_API_KEY": "precious"}
THEIRS = "QDRANT_HOST=http://127.0.0.2\n"


@pytest.mark.parametrize(
    ("file", "environment"),
    [
        (THEIRS, {"QDRANT_API_KEY": "precious"}),
        (THEIRS + "QDRANT_API_KEY=x\n", {"QDRANT_API_KEY": "precious"}),
        ("QDRANT_API_KEY=x\n", {"QDRANT_HOST": "http://127.0.0.1"}),
    ],
)
def test_local_sends_the_key_of_qdrant_only_to_a_server_from_the_same_source(
    env_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    environment: dict[str, str],
) -> None:
    env_file.write_text(file)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["stats", "--local"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {MESSAGES['mixed_sources'].en}\n")
    assert str(env_file) in err
    assert "precious" not in err


@pytest.mark.parametrize(
    ("file", "environment"),
    [
        ("", {}),
        (THEIRS, {}),
        (THEIRS + "QDRANT_API_KEY=x\n", {}),
        ("", MINE),
        (THEIRS + "QDRANT_API_KEY=x\n", MINE),
        ("QDRANT_PATH=store\n", {"QDRANT_API_KEY": "precious"}),
    ],
)
def test_settings_of_qdrant_from_one_source_are_accepted(
    env_file: Path, monkeypatch: pytest.MonkeyPatch, file: str, environment: dict[str, str]
) -> None:
    env_file.write_text(file)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    RagSettings().check_sources()


def test_a_file_cannot_read_variables_of_the_environment(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "precious")
    env_file.write_text("QDRANT_HOST=${SECRET}.test\nQDRANT_PATH=$HOME/${SECRET}\n")
    settings = RagSettings()
    assert settings.qdrant_host == "${SECRET}.test"
    assert settings.qdrant_path == Path("$HOME/${SECRET}")
