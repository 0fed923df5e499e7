"""The embedded store: Qdrant's own engine in this process, one folder per collection.

    PATH/.lock                               held by the one process that owns the store; its pid
    PATH/NAME/GENERATION/collection.json     which model made the vectors
    PATH/NAME/GENERATION/shard/              the engine's files
    PATH/NAME/published                      a link to one of the generations

A write that returned survives a killed process: the engine replays its log. Until the next
flush (every `FLUSH_POINTS` points, and at close) it may be lost when the machine loses power.
Search is an exact scan: right for up to about 100 000 points, above that use a server.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from qdrant_edge import (
    CountRequest,
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeVectorParams,
    KeywordIndexParams,
    Query,
    QueryRequest,
    ScrollRequest,
    UpdateOperation,
)
from qdrant_edge import Point as EdgePoint

from rag.edge_filters import edge_filter
from rag.edge_folders import (
    check_room,
    drop_generation,
    folder_errors,
    generations_in,
    publish_in,
    published_in,
    read_identity,
    remove_leftovers,
    sync_folder,
    write_identity,
)
from rag.errors import StoreLocked, StoreUnavailable
from rag.filters import TENANT_FIELD, Filter
from rag.store import (
    KEYWORD_FIELDS,
    Match,
    ModelIdentity,
    Payload,
    Point,
    Record,
    Vector,
    check_id,
    check_identity,
    check_name,
    check_payload,
    check_points,
    check_query,
    check_vector,
    is_published,
    missing,
)

# Without a flush the log grows with every write (172 MB and 3.7 s to reopen after 200 000
# points of 128 dimensions; with one every 10 000 points 44 MB and 0.2 s). A flush takes
# some 50 ms whether it follows 1 point or 10 000, so it does not follow every write.
FLUSH_POINTS: Final = 10_000


class EdgeCollection:
    """An open generation of a collection of the embedded store."""

    def __init__(self, name: str, identity: ModelIdentity, folder: Path) -> None:
        self.name = name
        self.identity = identity
        self._folder = folder
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._unflushed = 0
        self._shard: EdgeShard | None = None
        check_room(folder)  # loading replays the log, which writes
        with _engine_errors(folder):
            self._shard = EdgeShard.load(str(folder / "shard"))

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert or replace points; all are checked before any is written."""
        checked = check_points(points, self.identity.dimension)
        if not checked:
            return
        ready = [EdgePoint(p.id, p.vector.tolist(), p.payload) for p in checked]
        check_room(self._folder)
        with self._open_shard() as shard:
            shard.update(UpdateOperation.upsert_points(ready))
            self._wrote(shard, len(ready))

    def overwrite_payloads(self, payloads: Mapping[str, Payload]) -> int:
        """Replace the payloads of those ids that exist, and return how many did."""
        checked = {check_id(id): check_payload(payload, id) for id, payload in payloads.items()}
        check_room(self._folder)
        with self._open_shard() as shard:
            held = shard.retrieve(list(checked), with_payload=False, with_vector=False)
            for record in held:
                payload = checked[str(record.id)]
                shard.update(UpdateOperation.overwrite_payload([record.id], payload))
            self._wrote(shard, len(held))
        return len(held)

    def retrieve(self, ids: Sequence[str], *, with_vectors: bool = False) -> dict[str, Record]:
        """Return those points that exist, by the ids as they were given."""
        canonical = {id: check_id(id) for id in ids}
        with self._open_shard() as shard:
            records = shard.retrieve(
                list(canonical.values()), with_payload=True, with_vector=with_vectors
            )
        found = {record.id: record for record in map(_record, records)}
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
        offset: int = 0,
        filter: Filter | None = None,
        score_threshold: float | None = None,
        with_vectors: bool = False,
    ) -> list[Match]:
        """Return the `top_k` most similar points after the first `offset`, best first."""
        check_query(top_k, offset, score_threshold)
        unit = check_vector(vector, self.identity.dimension, "the query vector")
        request = QueryRequest(
            limit=top_k,
            offset=offset,
            query=Query.Nearest(unit.tolist()),
            filter=edge_filter(filter),
            score_threshold=score_threshold,
            with_payload=True,
            with_vector=with_vectors,
        )
        with self._open_shard() as shard:
            points = shard.query(request)
        return [Match(str(p.id), p.score, p.payload or {}, _vector(p)) for p in points]

    def scroll(
        self, *, filter: Filter | None = None, limit: int = 1000, start: str | None = None
    ) -> tuple[list[Record], str | None]:
        """Return points in the order of their ids, from `start`, and where to go on."""
        request = ScrollRequest(
            limit=limit,
            offset=None if start is None else check_id(start),
            filter=edge_filter(filter),
            with_payload=True,
            with_vector=False,
        )
        with self._open_shard() as shard:
            records, following = shard.scroll(request)
        return [_record(record) for record in records], None if following is None else str(
            following
        )

    def count(self, *, filter: Filter | None = None) -> int:
        """Return the exact number of points; of those that pass `filter`."""
        with self._open_shard() as shard:
            return shard.count(CountRequest(exact=True, filter=edge_filter(filter)))

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
                raise StoreUnavailable(
                    f"the embedded store of {self._folder} is closed, or was dropped just now"
                )
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
        self._guard = threading.RLock()
        self._open: dict[Path, EdgeCollection] = {}
        self._lock_file: int | None = _lock(path)
        remove_leftovers(path)

    def open(
        self, name: str, identity: ModelIdentity, *, create: bool = True, staged: bool = False
    ) -> EdgeCollection:
        """Open a generation; opened twice it is the same object."""
        with self._using(name):
            folder = self._path / name
            held = folder / identity.generation if staged else published_in(folder)
            if held is None or not held.exists():
                if not create:
                    raise missing(name)
                held = create_generation(folder, identity)
                if not staged:
                    publish_in(folder, identity.generation)
            collection = self._load(name, held)
        check_identity(name, collection.identity, identity)
        return collection

    def published(self, name: str) -> EdgeCollection | None:
        """Open what is published, whichever model made it; None when nothing is."""
        with self._using(name):
            held = published_in(self._path / name)
            return None if held is None else self._load(name, held)

    def generations(self, name: str) -> list[EdgeCollection]:
        """Open all generations, the published one first."""
        with self._using(name):
            folder = self._path / name
            published = published_in(folder)
            held = sorted(generations_in(folder), key=lambda path: (path != published, path))
            return [self._load(name, path) for path in held]

    def publish(self, name: str, identity: ModelIdentity) -> None:
        """Make the generation of `identity` the published one, in one step."""
        with self._using(name):
            folder = self._path / name
            if not (folder / identity.generation).exists():
                raise missing(name)
            publish_in(folder, identity.generation)

    def drop(self, name: str, generation: str) -> bool:
        """Delete an unpublished generation and say whether it was there."""
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
        """Flush all collections and give the folder free; further calls do nothing."""
        if os.getpid() != self._pid:
            return  # a fork: the files and the lock are its parent's
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
            os.ftruncate(self._lock_file, 0)
            # Unlocked by name: closing alone would leave it to children that inherited it.
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)
            os.close(self._lock_file)
            self._lock_file = None
        if failed is not None:
            raise failed

    @contextmanager
    def _using(self, name: str) -> Iterator[None]:
        check_name(name)
        _refuse_fork(self._pid)
        with self._guard:
            if self._lock_file is None:
                raise StoreUnavailable(f"the embedded store at {self._path} is closed")
            with folder_errors(self._path):
                yield

    def _load(self, name: str, folder: Path) -> EdgeCollection:
        if folder not in self._open:
            self._open[folder] = EdgeCollection(name, read_identity(name, folder), folder)
        return self._open[folder]


def create_generation(folder: Path, identity: ModelIdentity) -> Path:
    """Make a generation below a collection's folder, whole or not at all, and return it.

    It is built under a name that no generation has and then renamed, so that a crash leaves
    neither a shard without an identity nor an identity without a shard.
    """
    building, final = folder / f".creating-{identity.generation}", folder / identity.generation
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder)
    if building.exists():
        shutil.rmtree(building)  # what a crash left; it never held a point
    building.mkdir()
    with _engine_errors(final):
        vectors = EdgeVectorParams(size=identity.dimension, distance=Distance.Cosine)
        shard = EdgeShard.create(str(building / "shard"), EdgeConfig(vectors=vectors))
        try:
            for field in KEYWORD_FIELDS:
                keyword = KeywordIndexParams(is_tenant=field == TENANT_FIELD)
                shard.update(UpdateOperation.create_field_index(field, keyword))
            shard.flush()
        finally:
            shard.close()
    write_identity(building, identity)
    sync_folder(building)
    os.rename(building, final)
    sync_folder(folder)
    sync_folder(folder.parent)
    return final


def _record(record: Any) -> Record:
    return Record(str(record.id), record.payload or {}, _vector(record))


def _vector(point: Any) -> Vector | None:
    return None if point.vector is None else np.asarray(point.vector, np.float32)


def _lock(path: Path) -> int:
    """Take the folder for this process and return the lock's file descriptor."""
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
            "only one can own it: stop that process, or search and index through its HTTP "
            "service, or set QDRANT_HOST to share a Qdrant server"
        ) from None
    os.ftruncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)
    return file


def _refuse_fork(pid: int) -> None:
    # Asked before any lock is taken: a fork may have copied it held.
    if os.getpid() != pid:
        raise StoreLocked(
            f"the embedded store was opened by the process with pid {pid}, of which this process "
            "is a fork: open it after forking and in one process only, or set QDRANT_HOST"
        )


@contextmanager
def _engine_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the engine raises nothing more specific
        raise StoreUnavailable(f"the embedded store of {folder} failed: {error}") from error
