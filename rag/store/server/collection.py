"""One version of a collection on a Qdrant server, which stores it as a collection of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

import numpy as np
from qdrant_client import models

from bento.contract.filters import Filter
from rag.store.checks import (
    check_id,
    check_payload,
    check_points,
    check_query,
    check_scroll,
    check_vector,
)
from rag.store.interface import Match, ModelIdentity, Payload, Point, Record, Vector
from rag.store.ranking import lowered, ranked, selected
from rag.store.server.calls import Calls
from rag.store.server.filters import server_filter

T = TypeVar("T")

CHUNK_POINTS: Final = 256

# In a quantized collection, the server selects three times the wanted number of points by their
# quantized vectors, then rescores them. Without quantization, it ignores these parameters.
RESCORED: Final = models.SearchParams(
    quantization=models.QuantizationSearchParams(rescore=True, oversampling=3)
)


def name_there(name: str, generation: str) -> str:
    """Return the name of a version on the server."""
    return f"{name}--{generation}"


class ServerCollection:
    """An open version of a collection on a server.

    Calls name the version, never the alias. So if another version is published during a write,
    the vectors of two models cannot mix.
    """

    def __init__(self, name: str, identity: ModelIdentity, calls: Calls) -> None:
        self.name = name
        self.identity = identity
        self._there = name_there(name, identity.generation)
        self._calls = calls

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert or replace points, 256 per call; all are checked before any is written.

        If a call fails, the points of earlier calls stay written. It is safe to send all again.
        """
        ready = [
            models.PointStruct(id=p.id, vector=p.vector.tolist(), payload=p.payload)
            for p in check_points(points, self.identity.dimension)
        ]
        for chunk in _chunks(ready):
            self._upsert(chunk)

    def overwrite_payloads(self, payloads: Mapping[str, Payload]) -> int:
        """Replace the payloads of the ids that exist, 256 per call, and return their number."""
        checked = {check_id(id): check_payload(payload, id) for id, payload in payloads.items()}
        held = [record.id for chunk in _chunks(checked) for record in self._retrieve(chunk)]
        for chunk in _chunks(held):
            self._overwrite({id: checked[id] for id in chunk})
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
        found = {
            record.id: record
            for chunk in _chunks(set(canonical.values()))
            for record in self._retrieve(chunk, payloads=selected(fields), vectors=with_vectors)
        }
        return {id: found[uuid] for id, uuid in canonical.items() if uuid in found}

    def delete(self, ids: Sequence[str]) -> int:
        """Delete points by id, and return the number of those that existed.

        Points are counted before they are deleted, so a retry does not change the number.
        """
        unique = {check_id(id) for id in ids}
        held = [record.id for chunk in _chunks(unique) for record in self._retrieve(chunk)]
        for chunk in _chunks(held):
            self._delete(chunk)
        return len(held)

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

        def ask(limit: int, start: int, whole: bool) -> list[Match]:
            response = self._calls(
                lambda client: client.query_points(
                    self._there,
                    query=unit.tolist(),
                    query_filter=server_filter(filter),
                    limit=limit,
                    offset=start,
                    score_threshold=lowered(score_threshold),
                    search_params=RESCORED,
                    with_payload=selected(fields) if whole else False,
                    with_vectors=whole and with_vectors,
                )
            )
            return [Match(str(p.id), p.score, p.payload or {}, _vector(p)) for p in response.points]

        fetch = partial(self.retrieve, with_vectors=with_vectors, fields=fields)
        return ranked(ask, fetch, top_k, offset)

    def scroll(
        self, *, filter: Filter | None = None, limit: int = 1000, start: str | None = None
    ) -> tuple[list[Record], str | None]:
        """Return points in the order of their ids from `start`, and the next page's `start`."""
        offset = check_scroll(limit, start)
        records, following = self._calls(
            lambda client: client.scroll(
                self._there,
                scroll_filter=server_filter(filter),
                limit=limit,
                offset=offset,
                with_payload=True,
            )
        )
        found = [_record(record) for record in records]
        return found, None if following is None else str(following)

    def count(self, *, filter: Filter | None = None) -> int:
        """Return the exact number of points that pass `filter`."""
        wanted = server_filter(filter)
        return self._calls(lambda c: c.count(self._there, count_filter=wanted, exact=True)).count

    def _upsert(self, points: list[models.PointStruct]) -> None:
        self._calls(lambda client: client.upsert(self._there, points, wait=True))

    def _overwrite(self, payloads: Mapping[str, Payload]) -> None:
        # By a filter on the id: naming an id that was just deleted would fail the whole batch.
        operations = [
            models.OverwritePayloadOperation(
                overwrite_payload=models.SetPayload(
                    payload=payload,
                    filter=models.Filter(must=[models.HasIdCondition(has_id=[id])]),
                )
            )
            for id, payload in payloads.items()
        ]
        self._calls(lambda client: client.batch_update_points(self._there, operations, wait=True))

    def _retrieve(
        self, ids: list[str], *, payloads: bool | list[str] = False, vectors: bool = False
    ) -> list[Record]:
        found = self._calls(
            lambda client: client.retrieve(
                self._there, ids, with_payload=payloads, with_vectors=vectors
            )
        )
        return [_record(record) for record in found]

    def _delete(self, ids: list[str]) -> None:
        points = models.PointIdsList(points=list(ids))
        self._calls(lambda client: client.delete(self._there, points, wait=True))


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items, 256 at a time."""
    listed = list(items)
    for start in range(0, len(listed), CHUNK_POINTS):
        yield listed[start : start + CHUNK_POINTS]


def _record(record: models.Record) -> Record:
    return Record(str(record.id), record.payload or {}, _vector(record))


def _vector(point: models.Record | models.ScoredPoint) -> Vector | None:
    return None if point.vector is None else np.asarray(point.vector, np.float32)
