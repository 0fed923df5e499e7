"""The engines on which the tests of every store run, and their folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.support.rag.engines import quick_folder
from tests.support.rag.stores import Engine, by_wire, connector, delete_all

if TYPE_CHECKING:
    from tests.support.rag.loopback import Loopback


@pytest.fixture(scope="package")
def shared_loopback() -> Iterator[Loopback]:
    from tests.support.rag.loopback import Loopback

    loopback = Loopback()
    yield loopback
    loopback.stop()


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    from tests.support.rag.loopback import Loopback

    loopback = Loopback()
    yield loopback
    loopback.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with quick_folder(tmp_path) as folder:
        yield folder


@pytest.fixture(params=["embedded", by_wire("grpc"), by_wire("server")])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with quick_folder(tmp_path) as folder:
        shared = request.getfixturevalue("shared_loopback") if request.param == "grpc" else None
        connect = connector(request.param, folder, shared)
        engine = Engine(connect, f"test_{uuid4().hex[:12]}", connect())
        yield engine
        engine.store.close()
        if request.param == "server":
            delete_all(engine.name)
