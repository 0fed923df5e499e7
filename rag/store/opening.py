"""Opening the store that the settings ask for."""

from __future__ import annotations

from rag.settings import RagSettings
from rag.store.interface import Store


def open_store(settings: RagSettings) -> Store:
    """Open the Qdrant server at `qdrant_host`, or without one the store at `qdrant_path`.

    Raises `StoreLocked` when another process owns the embedded store. The first call to a server
    is that of `Store.open`, which raises `StoreUnavailable` if the server does not answer.
    """
    # Each engine works without the other one's package.
    if settings.qdrant_host:
        from rag.store.server.store import ServerStore

        return ServerStore.connect(settings)
    from rag.store.edge.store import EdgeStore

    return EdgeStore(settings.qdrant_path)
