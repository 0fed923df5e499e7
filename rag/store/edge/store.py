"""The embedded store: Qdrant's own engine in this process, one folder per collection.

    PATH/.lock                               locked by the process that owns the store; has its pid
    PATH/NAME/GENERATION/collection.json     the identity of the model that made the vectors
    PATH/NAME/GENERATION/shard/              the engine's files
    PATH/NAME/published                      a link to the published version

A search reads all vectors, with 4 bits per number. Above about 300 000 points, use a server.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bento.contract.errors import StoreLocked, StoreUnavailable
from rag.store.checks import check_identity, check_name, is_published, missing
from rag.store.edge.collection import EdgeCollection, Limits, create_shard, refuse_fork
from rag.store.edge.folders import (
    check_room,
    drop_generation,
    folder_errors,
    generations_in,
    new_generation,
    publish_in,
    published_in,
    read_identity,
    remove_leftovers,
)
from rag.store.interface import ModelIdentity


class EdgeStore:
    """The collections in one folder, owned by one process at a time.

    Raises `StoreLocked` when another process, or another store of this process, owns the folder,
    and `StoreUnavailable` when the folder is not writable.
    """

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self._path = path
        self._limits = limits or Limits()
        self._pid = os.getpid()
        self._guard = threading.RLock()
        self._open: dict[Path, EdgeCollection] = {}
        # The published collections of `_open`. Only this process can publish, so they stay valid.
        self._published: dict[str, EdgeCollection] = {}
        self._lock_file: int | None = _lock(path)
        remove_leftovers(path)

    def open(
        self, name: str, identity: ModelIdentity, *, create: bool = True, staged: bool = False
    ) -> EdgeCollection:
        """Open a version. Every call returns the same object for it."""
        with self._using(name):
            if not staged and name in self._published:
                check_identity(name, self._published[name].identity, identity)
                return self._published[name]
            folder = self._path / name
            published = published_in(folder)
            unpublished = published is None and not staged
            held = folder / identity.generation if staged or published is None else published
            if not create and (unpublished or not held.exists()):
                raise missing(name)
            if not held.exists():
                check_room(self._path, self._limits.min_free_bytes)
                with new_generation(folder, identity) as building:
                    create_shard(building, identity.dimension)
            collection = self._load(name, held)
            check_identity(name, collection.identity, identity)
            if unpublished:
                publish_in(folder, identity.generation)
            if not staged:
                self._published[name] = collection
        return collection

    def published(self, name: str) -> EdgeCollection | None:
        """Open the published version, whichever model filled it; None if there is none."""
        with self._using(name):
            held = published_in(self._path / name)
            return None if held is None else self._load(name, held)

    def generations(self, name: str) -> list[EdgeCollection]:
        """Open all versions, the published one first."""
        with self._using(name):
            folder = self._path / name
            published = published_in(folder)
            held = sorted(generations_in(folder), key=lambda path: (path != published, path))
            return [self._load(name, path) for path in held]

    def publish(self, name: str, identity: ModelIdentity) -> None:
        """Publish the version of `identity` atomically."""
        with self._using(name):
            folder = self._path / name
            held = folder / identity.generation
            if not held.exists():
                raise missing(name)
            collection = self._load(name, held)
            check_identity(name, collection.identity, identity)
            collection.flush()  # because the old version may be dropped next
            self._published.pop(name, None)
            publish_in(folder, identity.generation)

    def drop(self, name: str, generation: str) -> bool:
        """Delete an unpublished version; return False if there is no version of that name."""
        with self._using(name):
            folder = self._path / name
            held = folder / generation
            if held == published_in(folder):
                raise is_published(name, generation)
            if held not in generations_in(folder):
                return False
            if collection := self._open.pop(held, None):
                collection.close()
            drop_generation(held)
            return True

    def close(self) -> None:
        """Flush all collections and unlock the folder; further calls do nothing."""
        if os.getpid() != self._pid:
            return  # a fork: the files and the lock belong to its parent
        with self._guard:
            if self._lock_file is None:
                return
            failed: StoreUnavailable | None = None
            for collection in self._open.values():
                try:
                    collection.close()
                except StoreUnavailable as error:
                    failed = error
            self._open.clear()
            self._published.clear()
            os.ftruncate(self._lock_file, 0)
            # Closing the file alone would not release the lock if a child process inherited it.
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)
            os.close(self._lock_file)
            self._lock_file = None
        if failed is not None:
            raise failed

    @contextmanager
    def _using(self, name: str) -> Iterator[None]:
        check_name(name)
        refuse_fork(self._pid)
        with self._guard:
            if self._lock_file is None:
                raise StoreUnavailable(f"the embedded store at {self._path} is closed")
            with folder_errors(self._path):
                yield

    def _load(self, name: str, folder: Path) -> EdgeCollection:
        if folder not in self._open:
            identity = read_identity(name, folder)
            self._open[folder] = EdgeCollection(name, identity, folder, self._limits)
        return self._open[folder]


def _lock(path: Path) -> int:
    """Lock the folder for this process, and return the lock's file descriptor."""
    with folder_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        file = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(file, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(file)
        if not isinstance(error, BlockingIOError):
            raise StoreUnavailable(f"{path / '.lock'} cannot be locked: {error}") from error
        here = " (this process)" if owner == str(os.getpid()) else ""
        raise StoreLocked(
            f"the embedded store at {path} is in use by the process with pid {owner}{here}, and "
            "only one process can use it at a time. Stop that process, use its HTTP service, or "
            "set QDRANT_HOST to share a Qdrant server"
        ) from None
    os.ftruncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)
    return file
