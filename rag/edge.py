"""The embedded store: Qdrant's own engine in this process, one folder per collection.

    PATH/.lock                   held by the one process that owns the store; its pid
    PATH/NAME/collection.json    which model made the vectors
    PATH/NAME/shard/             the engine's files

A write that returned survives a killed process: the engine replays its log. Until the next
flush (every `FLUSH_POINTS` points, and at close) it may be lost when the machine loses power.
Search is an exact scan: right for up to about 100 000 points, above that use a server.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qdrant_edge import (
    CountRequest,
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeVectorParams,
    FieldCondition,
    Filter,
    KeywordIndexParams,
    MatchValue,
    Query,
    QueryRequest,
    UpdateOperation,
)
from qdrant_edge import Point as EdgePoint

from rag.errors import StoreLocked, StoreUnavailable
from rag.store import (
    TENANT_FIELD,
    CollectionInfo,
    Match,
    ModelIdentity,
    Payload,
    Point,
    Vector,
    check_id,
    check_identity,
    check_name,
    check_points,
    check_query,
    check_vector,
    identity_from_json,
    identity_to_json,
    missing,
)

# Without a flush the log grows with every write (172 MB and 3.7 s to reopen after 200 000
# points of 128 dimensions; with one every 10 000 points 44 MB and 0.2 s). A flush takes
# some 50 ms whether it follows 1 point or 10 000, so it does not follow every write.
FLUSH_POINTS = 10_000

# The engine writes through memory maps that grow by 32 MB: on a full disk the kernel ends the
# process (SIGBUS), without an exception. So it is kept from getting there.
MIN_FREE_BYTES = 256 << 20


class EdgeCollection:
    """An open collection of the embedded store."""

    def __init__(self, name: str, identity: ModelIdentity, folder: Path) -> None:
        self.name = name
        self.identity = identity
        self._folder = folder
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._unflushed = 0
        self._shard: EdgeShard | None = None
        _check_room(folder)  # loading replays the log, which writes
        with _engine_errors(folder):
            self._shard = EdgeShard.load(str(folder / "shard"))

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert or replace points; all are checked before any is written."""
        checked = check_points(points, self.identity.dimension)
        if not checked:
            return
        ready = [EdgePoint(p.id, p.vector.tolist(), p.payload) for p in checked]
        _check_room(self._folder)
        with self._open_shard() as shard:
            shard.update(UpdateOperation.upsert_points(ready))
            self._wrote(shard, len(ready))

    def retrieve(self, ids: Sequence[str]) -> dict[str, Payload]:
        """Return the payloads of those ids that exist."""
        canonical = {id: check_id(id) for id in ids}
        with self._open_shard() as shard:
            records = shard.retrieve(list(canonical.values()), with_payload=True, with_vector=False)
        found = {str(record.id): record.payload or {} for record in records}
        return {id: found[uuid] for id, uuid in canonical.items() if uuid in found}

    def delete(self, ids: Sequence[str]) -> int:
        """Delete points by id and return how many existed."""
        unique = list({check_id(id) for id in ids})
        with self._open_shard() as shard:
            records = shard.retrieve(list(unique), with_payload=False, with_vector=False)
            if records:
                # By id: deleting by filter is not exact across a killed process.
                shard.update(UpdateOperation.delete_points([record.id for record in records]))
                self._wrote(shard, len(records))
        return len(records)

    def query(
        self,
        vector: Vector,
        top_k: int,
        *,
        dao_id: str | None = None,
        score_threshold: float | None = None,
    ) -> list[Match]:
        """Return the `top_k` most similar points, best first; of one tenant if given."""
        check_query(top_k, score_threshold)
        unit = check_vector(vector, self.identity.dimension, "the query vector")
        request = QueryRequest(
            limit=top_k,
            query=Query.Nearest(unit.tolist()),
            filter=_tenant(dao_id),
            score_threshold=score_threshold,
            with_payload=True,
            with_vector=False,
        )
        with self._open_shard() as shard:
            points = shard.query(request)
        return [Match(str(p.id), p.score, p.payload or {}) for p in points]

    def count(self, *, dao_id: str | None = None) -> int:
        """Return the exact number of points; of one tenant if given."""
        with self._open_shard() as shard:
            return shard.count(CountRequest(exact=True, filter=_tenant(dao_id)))

    def close(self) -> None:
        """Flush and release the shard; done once, by the store."""
        with self._lock:
            shard, self._shard = self._shard, None
            if shard is not None:
                with _engine_errors(self._folder):
                    try:
                        shard.flush()
                    finally:
                        shard.close()

    @contextmanager
    def _open_shard(self) -> Iterator[EdgeShard]:
        _refuse_fork(self._pid)
        with self._lock:
            if self._shard is None:
                raise StoreUnavailable(f"the embedded store of {self._folder} is closed")
            with _engine_errors(self._folder):
                yield self._shard

    def _wrote(self, shard: EdgeShard, points: int) -> None:
        self._unflushed += points
        if self._unflushed >= FLUSH_POINTS:
            shard.flush()
            self._unflushed = 0


class EdgeStore:
    """The collections below one folder, owned by one process at a time.

    Raises `StoreLocked` when another process, or another store of this one, owns the folder,
    and `StoreUnavailable` when the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._collections: dict[str, EdgeCollection] = {}
        self._lock_file: int | None = _lock(path)

    def open(self, name: str, identity: ModelIdentity, *, create: bool = True) -> EdgeCollection:
        """Open a collection, creating it when missing; opened twice it is the same object."""
        check_name(name)
        _refuse_fork(self._pid)
        with self._guard:
            self._check_open()
            collection = self._load(name)
            if collection is None:
                if not create:
                    raise missing(name)
                _create(self._path, name, identity)
                collection = self._load(name)
                assert collection is not None
        check_identity(name, collection.identity, identity)
        return collection

    def info(self, name: str) -> CollectionInfo | None:
        """Return what a collection holds, or None when there is none of that name."""
        check_name(name)
        _refuse_fork(self._pid)
        with self._guard:
            self._check_open()
            collection = self._load(name)
        if collection is None:
            return None
        return CollectionInfo(name, collection.count(), collection.identity)

    def close(self) -> None:
        """Flush all collections and give the folder free; further calls do nothing."""
        if os.getpid() != self._pid:
            return  # a fork: the files and the lock are its parent's
        with self._guard:
            if self._lock_file is None:
                return
            failed: StoreUnavailable | None = None
            for collection in self._collections.values():
                try:
                    collection.close()
                except StoreUnavailable as error:
                    failed = error
            self._collections.clear()
            os.ftruncate(self._lock_file, 0)
            # Unlocked by name: closing alone would leave it to children that inherited it.
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)
            os.close(self._lock_file)
            self._lock_file = None
        if failed is not None:
            raise failed

    def _check_open(self) -> None:
        if self._lock_file is None:
            raise StoreUnavailable(f"the embedded store at {self._path} is closed")

    def _load(self, name: str) -> EdgeCollection | None:
        if name not in self._collections:
            folder = self._path / name
            if not folder.exists():
                return None
            self._collections[name] = EdgeCollection(name, _read_identity(folder), folder)
        return self._collections[name]


def _create(path: Path, name: str, identity: ModelIdentity) -> None:
    """Make a collection's folder, whole or not at all.

    It is built under a name that no collection can have and then renamed, so that a crash
    leaves neither a shard without an identity nor an identity without a shard.
    """
    folder = path / f".creating-{name}"
    _check_room(path)
    with _folder_errors(path):
        if folder.exists():
            shutil.rmtree(folder)  # what a crash left; it never held a point
        folder.mkdir()
        with _engine_errors(path / name):
            vectors = EdgeVectorParams(size=identity.dimension, distance=Distance.Cosine)
            shard = EdgeShard.create(str(folder / "shard"), EdgeConfig(vectors=vectors))
            try:
                tenant = KeywordIndexParams(is_tenant=True)
                shard.update(UpdateOperation.create_field_index(TENANT_FIELD, tenant))
                shard.flush()
            finally:
                shard.close()
        with open(folder / "collection.json", "w", encoding="utf-8") as file:
            json.dump({"identity": identity_to_json(identity)}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(folder)
        os.rename(folder, path / name)
        _sync_folder(path)


def _read_identity(folder: Path) -> ModelIdentity:
    file = folder / "collection.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreUnavailable(
            f"{file} cannot be read ({error}), and without it nobody knows which model made the "
            f"vectors in {folder}: restore that file, or delete the folder and index again"
        ) from error
    return identity_from_json(folder.name, data.get("identity") if isinstance(data, dict) else None)


def _lock(path: Path) -> int:
    """Take the folder for this process and return the lock's file descriptor."""
    with _folder_errors(path):
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
            "only one can own it: stop that process, or search and index through its HTTP "
            "service, or set QDRANT_HOST to share a Qdrant server"
        ) from None
    os.ftruncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)
    return file


def _check_room(folder: Path) -> None:
    with _folder_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise StoreUnavailable(
            f"the disk of the embedded store at {folder} has {free >> 20} MB free and at least "
            f"{MIN_FREE_BYTES >> 20} MB are needed: make room, or move the store (QDRANT_PATH)"
        )


def _refuse_fork(pid: int) -> None:
    # Asked before any lock is taken: a fork may have copied it held.
    if os.getpid() != pid:
        raise StoreLocked(
            f"the embedded store was opened by the process with pid {pid}, of which this process "
            "is a fork: open it after forking and in one process only, or set QDRANT_HOST"
        )


def _tenant(dao_id: str | None) -> Filter | None:
    if dao_id is None:
        return None
    return Filter(must=[FieldCondition(key=TENANT_FIELD, match=MatchValue(dao_id))])


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def _folder_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(
            f"the folder {path} of the embedded store (QDRANT_PATH) cannot be used: {error}"
        ) from error


@contextmanager
def _engine_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the engine raises nothing more specific
        raise StoreUnavailable(f"the embedded store of {folder} failed: {error}") from error
