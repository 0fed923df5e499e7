"""The environment of the tests of the command, and a command that needs no service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rag import LocalBackend
from rag.cli.parser import main
from rag.store.edge.store import EdgeStore
from tests.support.rag.command import Run
from tests.support.rag.engines import quick_folder
from tests.support.rag.fakes import FakeEncoder


@pytest.fixture(autouse=True)
def _english_and_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def run_local(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Run]:
    """Run the command with a `FakeEncoder`, of the model TEST_MODEL if it is set."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with quick_folder(tmp_path) as folder:

        def opened(local: bool) -> LocalBackend:
            encoder = FakeEncoder(os.environ.get("TEST_MODEL", "fake"))
            return LocalBackend(encoder, EdgeStore(folder / "qdrant"))

        def run(*arguments: object) -> tuple[int, str, str]:
            status = main([str(argument) for argument in arguments], opened=opened)
            captured = capsys.readouterr()
            return status, captured.out, captured.err

        yield run
