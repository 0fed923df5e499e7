"""One version of a collection in the embedded store: a shard of Qdrant's engine.

Acknowledged writes survive a killed process, since the engine replays its log. A power failure may
lose the writes since the last flush, which was at most `FLUSH_SECONDS` ago.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
    QuantizationSearchParams,
    Query,
    QueryRequest,
    ScrollRequest,
    SearchParams,
    TurboQuantBitSize,
    TurboQuantQuantizationConfig,
    UpdateOperation,
)
from qdrant_edge import Point as EdgePoint

from bento.contract.errors import InvalidSearch, StoreLocked, StoreUnavailable
from bento.contract.filters import TENANT_FIELD, Filter
from rag.store.checks import (
    check_id,
    check_payload,
    check_points,
    check_query,
    check_scroll,
    check_vector,
)
from rag.store.edge.filters import condition_count, edge_filter
from rag.store.edge.folders import MIN_FREE_BYTES, check_room
from rag.store.interface import KEYWORD_FIELDS, Match, ModelIdentity, Payload, Point, Record, Vector
from rag.store.ranking import lowered, ranked, selected

logger = logging.getLogger("vision_encoder")

# The engine's log grows until a flush. After 200 000 points of 128 dimensions without one, it takes
# 172 MB, and reopening takes 3.7 s. With a flush every 10 000 points, that is 44 MB and 0.2 s. A
# flush takes about 50 ms, whether after 1 point or 10 000, so it does not follow every write.
FLUSH_POINTS: Final = 10_000
FLUSH_SECONDS: Final = 1.0

# A search compares 4-bit vectors. Their scores have an error of 0.004 (standard deviation, 512
# dimensions). So the engine rescores, with float32, three times the wanted number of points plus
# this number. Smaller collections are searched exactly. Decision 0007 has the recall of others.
CANDIDATES: Final = 1000
# How many conditions times points a query may check, and how many conditions it may always have.
MAX_CHECKS: Final = 1_500_000
FEW_CONDITIONS: Final = 10


@dataclass
class Limits:
    """The limits of an embedded store, which tests change."""

    min_free_bytes: int = MIN_FREE_BYTES
    flush_points: int = FLUSH_POINTS
    flush_seconds: float = FLUSH_SECONDS


class EdgeCollection:
    """An open version of a collection in the embedded store."""

    def __init__(
        self, name: str, identity: ModelIdentity, folder: Path, limits: Limits | None = None
    ) -> None:
        self.name = name
        self.identity = identity
        self._folder = folder
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._unflushed = 0
        self._later: threading.Timer | None = None  # flushes the last writes
        self._shard: EdgeShard | None = None
        check_room(folder, self._limits.min_free_bytes)  # loading replays the log, which writes
        with _engine_errors(folder):
            self._shard = EdgeShard.load(str(folder / "shard"))

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert or replace points; all are checked before any is written."""
        checked = check_points(points, self.identity.dimension)
        if not checked:
            return
        ready = [EdgePoint(p.id, p.vector.tolist(), p.payload) for p in checked]
        with self._open_shard(grows=True) as shard:
            shard.update(UpdateOperation.upsert_points(ready))
            self._wrote(shard, len(ready))

    def overwrite_payloads(self, payloads: Mapping[str, Payload]) -> int:
        """Replace the payloads of the ids that exist, and return their number."""
        checked = {check_id(id): check_payload(payload, id) for id, payload in payloads.items()}
        with self._open_shard(grows=True) as shard:
            held = shard.retrieve(list(checked), with_payload=False, with_vector=False)
            for record in held:
                # One at a time (55 000 a second), so that a killed process leaves each one whole.
                payload = checked[str(record.id)]
                shard.update(UpdateOperation.overwrite_payload([record.id], payload))
            self._wrote(shard, len(held))
        return len(held)

    def retrieve(
        self,
        ids: Sequence[str],
        *,
        with_vectors: bool = False,
        fields: Sequence[str] | None = None,
    ) -> dict[str, Record]:
        """Return the points that exist, under the ids as the caller wrote them."""
        canonical = {id: check_id(id) for id in ids}
        with self._open_shard() as shard:
            records = shard.retrieve(
                list(canonical.values()), with_payload=selected(fields), with_vector=with_vectors
            )
        found = {record.id: record for record in map(_record, records)}
        return {id: found[uuid] for id, uuid in canonical.items() if uuid in found}

    def delete(self, ids: Sequence[str]) -> int:
        """Delete points by id, and return the number of those that existed."""
        unique = {check_id(id) for id in ids}
        with self._open_shard() as shard:
            records = shard.retrieve(list(unique), with_payload=False, with_vector=False)
            if records:
                # By id: if the process is killed, deleting by filter is not exact.
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
        fields: Sequence[str] | None = None,
    ) -> list[Match]:
        """Return the `top_k` most similar points after the first `offset`, best first."""
        check_query(top_k, offset, score_threshold)
        unit = check_vector(vector, self.identity.dimension, "the query vector")
        self._check_cost(filter)

        def ask(limit: int, start: int, whole: bool) -> list[Match]:
            request = QueryRequest(
                limit=limit,
                offset=start,
                query=Query.Nearest(unit.tolist()),
                filter=edge_filter(filter),
                score_threshold=lowered(score_threshold),
                with_payload=selected(fields) if whole else False,
                with_vector=whole and with_vectors,
                params=_rescored(start + limit),
            )
            with self._open_shard() as shard:
                points = shard.query(request)
            return [Match(str(p.id), p.score, p.payload or {}, _vector(p)) for p in points]

        fetch = partial(self.retrieve, with_vectors=with_vectors, fields=fields)
        return ranked(ask, fetch, top_k, offset)

    def scroll(
        self, *, filter: Filter | None = None, limit: int = 1000, start: str | None = None
    ) -> tuple[list[Record], str | None]:
        """Return points in the order of their ids from `start`, and the next page's `start`."""
        offset = check_scroll(limit, start)
        request = ScrollRequest(
            limit=limit,
            offset=offset,
            filter=edge_filter(filter),
            with_payload=True,
            with_vector=False,
        )
        with self._open_shard() as shard:
            records, following = shard.scroll(request)
        found = [_record(record) for record in records]
        return found, None if following is None else str(following)

    def count(self, *, filter: Filter | None = None) -> int:
        """Return the exact number of points that pass `filter`."""
        with self._open_shard() as shard:
            return shard.count(CountRequest(exact=True, filter=edge_filter(filter)))

    def flush(self) -> None:
        """Make all writes survive a power failure."""
        with self._open_shard() as shard:
            self._flush(shard)

    def close(self) -> None:
        """Flush and release the shard; only the store calls this."""
        with self._lock:
            if self._later:
                self._later.cancel()
            shard, self._shard = self._shard, None
            if shard is not None:
                with _engine_errors(self._folder):
                    try:
                        shard.flush()
                    finally:
                        shard.close()

    def _check_cost(self, filter: Filter | None) -> None:
        """Raise `InvalidSearch` for a filter that would block the whole process for seconds.

        The engine checks up to all conditions on each point, about a million a second, and holds
        Python's lock meanwhile.
        """
        conditions = condition_count(filter)
        if conditions <= FEW_CONDITIONS:
            return
        with self._open_shard() as shard:
            points = shard.info().points_count
        if conditions * points > MAX_CHECKS:
            raise InvalidSearch(
                f"the filter has {conditions} conditions, too many for a collection of {points:,} "
                "pictures in the embedded store: at most "
                f"{max(FEW_CONDITIONS, MAX_CHECKS // points)} are allowed. Use fewer, such as one "
                "condition with `any`"
            )

    @contextmanager
    def _open_shard(self, *, grows: bool = False) -> Iterator[EdgeShard]:
        refuse_fork(self._pid)
        with self._lock:
            if self._shard is None:
                raise StoreUnavailable(
                    f"the collection in {self._folder} is closed, because the store was closed or "
                    "this version was dropped: open the collection again"
                )
            if grows:
                check_room(self._folder, self._limits.min_free_bytes)
            with _engine_errors(self._folder):
                yield self._shard

    def _wrote(self, shard: EdgeShard, points: int) -> None:
        self._unflushed += points
        if self._unflushed >= self._limits.flush_points:
            self._flush(shard)
        elif self._unflushed and self._later is None:
            self._later = threading.Timer(self._limits.flush_seconds, self._flush_later)
            self._later.daemon = True
            self._later.start()

    def _flush(self, shard: EdgeShard) -> None:
        shard.flush()
        self._unflushed = 0

    def _flush_later(self) -> None:
        with self._lock:
            self._later = None
            if self._shard is not None and self._unflushed:
                try:
                    self._flush(self._shard)
                # The engine raises no narrower class; the next write or close raises it again.
                except Exception as error:  # noqa: BLE001
                    logger.warning("the embedded store in %s failed: %s", self._folder, error)


def create_shard(folder: Path, dimension: int) -> None:
    """Create an empty shard, with its payload indexes, in `folder`."""
    four_bits = TurboQuantQuantizationConfig(bits=TurboQuantBitSize.Bits4)
    vectors = EdgeVectorParams(
        size=dimension, distance=Distance.Cosine, quantization_config=four_bits
    )
    with _engine_errors(folder):
        shard = EdgeShard.create(str(folder / "shard"), EdgeConfig(vectors=vectors))
        try:
            for field in KEYWORD_FIELDS:
                keyword = KeywordIndexParams(is_tenant=field == TENANT_FIELD)
                shard.update(UpdateOperation.create_field_index(field, keyword))
            shard.flush()
        finally:
            shard.close()


def _rescored(wanted: int) -> SearchParams:
    oversampling = 3 + CANDIDATES / wanted
    quantization = QuantizationSearchParams(rescore=True, oversampling=oversampling)
    return SearchParams(quantization=quantization)


def _record(record: Any) -> Record:
    return Record(str(record.id), record.payload or {}, _vector(record))


def _vector(point: Any) -> Vector | None:
    return None if point.vector is None else np.asarray(point.vector, np.float32)


def refuse_fork(pid: int) -> None:
    """Raise `StoreLocked` in a fork of the process that opened the store.

    Call it before taking a lock: the fork may have a copy of a lock that is held.
    """
    if os.getpid() != pid:
        raise StoreLocked(
            f"this process is a fork of process {pid}, which opened the embedded store. Open the "
            "store after forking, in one process only, or set QDRANT_HOST to use a Qdrant server"
        )


@contextmanager
def _engine_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the engine raises no narrower class
        raise StoreUnavailable(f"the embedded store in {folder} failed: {error}") from error
