"""Open the store that the settings name."""

from __future__ import annotations

from rag.settings import RagSettings
from rag.store.interface import Store


def open_store(settings: RagSettings) -> Store:
    """Return the Qdrant server at `qdrant_host`, or without one the store at `qdrant_path`.

    Raises `StoreLocked` when another process owns the embedded store. This function does not call
    the server: `Store.open` makes the first call, and raises `StoreUnavailable` if it fails.
    """
    # Imported here, so that each engine works without the other one's package.
    if settings.qdrant_host:
        from rag.store.server.store import ServerStore

        return ServerStore.connect(settings)
    from rag.store.edge.store import EdgeStore

    return EdgeStore(settings.qdrant_path)
