"""Settings and servers for the tests of the doctor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bento.settings import Settings
from rag.settings import RagSettings
from tests.support.bento.doctor import Loopback
from tests.support.serving import free_port


@pytest.fixture(autouse=True)
def _default_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*Settings.model_fields, *RagSettings.model_fields, "hf_hub_offline"):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.chdir(tmp_path)  # a folder without .env


@pytest.fixture
def loopback() -> Iterator[Callable[..., Loopback]]:
    started: list[Loopback] = []

    def start(**answers: Any) -> Loopback:
        started.append(Loopback(**answers))
        return started[-1]

    yield start
    for each in started:
        each.server.shutdown()
        each.server.server_close()
