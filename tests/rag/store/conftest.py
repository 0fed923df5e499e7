"""The engines that the tests of every store run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from rag.store.server.store import ServerStore
from tests.support.rag.engines import quick_folder
from tests.support.rag.loopback import Loopback
from tests.support.rag.stores import Engine, connector, delete_all


@pytest.fixture(params=["embedded", "local", "grpc", "server"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with quick_folder(tmp_path) as folder:
        loopback = Loopback() if request.param == "grpc" else None
        connect = connector(request.param, folder, loopback)
        engine = Engine(connect, f"test_{uuid4().hex[:12]}", connect())
        yield engine
        engine.store.close()
        if request.param == "server":
            with closing(connect()) as store:
                assert isinstance(store, ServerStore)
                store._calls(lambda client: delete_all(client, engine.name))
        if loopback is not None:
            loopback.stop()
