"""A store on each engine, for the tests that all engines must pass.

qdrant-client takes a second to import, so nothing here imports it before a test needs it. The
engine `server` needs a Qdrant server at QDRANT_URL, with gRPC at QDRANT_GRPC_PORT (default
6334). The engine `grpc` uses the same protocol with the fake server `Loopback`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from rag.store.edge.store import EdgeStore
from rag.store.interface import Collection, Store
from rag.store.opening import open_store
from tests.support.rag.engines import CLIP, settings

if TYPE_CHECKING:
    from tests.support.rag.loopback import Loopback


@dataclass
class Engine:
    """A store, a function that opens it again, and a collection name that no other test uses."""

    connect: Callable[[], Store]
    name: str
    store: Store

    def open(self) -> Collection:
        return self.store.open(self.name, CLIP)

    def reopen(self) -> Store:
        self.store.close()
        self.store = self.connect()
        return self.store


def by_wire(kind: str) -> object:
    """Mark an engine that needs qdrant-client, whose import takes longer than most unit tests."""
    return pytest.param(kind, marks=pytest.mark.service)


def connector(kind: str, folder: Path, loopback: Loopback | None) -> Callable[[], Store]:
    if kind == "embedded":
        return lambda: EdgeStore(folder)
    if kind == "local-files":
        return lambda: local_mode(folder)
    if loopback is not None:
        return loopback.connect
    url = urlsplit(os.environ.get("QDRANT_URL", ""))
    if not url.hostname:
        pytest.skip("QDRANT_URL is not set: it must name a Qdrant server")
    host = f"{url.scheme}://{url.hostname}"
    return lambda: open_store(settings(qdrant_host=host, qdrant_port=url.port or 6333))


def local_mode(folder: Path | None = None) -> Store:
    """Return a store on qdrant-client's local mode, in a folder or in memory."""
    from qdrant_client import QdrantClient

    from rag.store.server.store import ServerStore

    client = QdrantClient(path=str(folder)) if folder else QdrantClient(":memory:")
    return ServerStore(client)


def delete_all(name: str) -> None:
    """Delete a collection, with all its versions, from the server at QDRANT_URL."""
    from qdrant_client import QdrantClient

    with closing(QdrantClient(os.environ["QDRANT_URL"])) as client:
        for collection in client.get_collections().collections:
            if collection.name.startswith(name):
                client.delete_collection(collection.name)
