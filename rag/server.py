"""A Qdrant server as the store, through qdrant-client.

A generation is a collection of its own, `NAME--GENERATION`; NAME is an alias of the published one.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Final, TypeVar

import grpc  # type: ignore[import-untyped]
import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from rag.errors import StoreUnavailable
from rag.filters import TENANT_FIELD, Filter
from rag.server_filters import server_filter
from rag.settings import RagSettings
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
    identity_from_json,
    identity_to_json,
    is_published,
    missing,
)

R = TypeVar("R")
T = TypeVar("T")

# A server that never answers is given up on after 19 s.
TIMEOUT_S: Final = 6
ATTEMPTS: Final = 3
FIRST_DELAY_S: Final = 0.25  # doubled each time
LONGEST_DELAY_S: Final = 3.0  # whatever a busy server asks for
CHUNK_POINTS: Final = 256

_PASSING: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    }
)

# The identity lies in the collection's own metadata: one atomic call creates both, it goes
# where the collection goes (snapshots, aliases), and no point has to be kept out of results.
# Qdrant keeps metadata since 1.16.
METADATA_KEY = "model_identity"

ADVICE = "start it, or correct QDRANT_HOST, QDRANT_PORT, QDRANT_GRPC_PORT and QDRANT_API_KEY"


class ServerCollection:
    """An open generation of a collection of a server.

    It is addressed by the name of its own collection there, never by the alias: a write that races
    a change of generation cannot put one model's vectors among another's.
    """

    def __init__(self, name: str, identity: ModelIdentity, store: ServerStore) -> None:
        self.name = name
        self.identity = identity
        self._there = there(name, identity.generation)
        self._ask = store.ask

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert or replace points, 256 a call; all are checked before any is written.

        When a call fails, those before it stay written: sending all again is safe.
        """
        checked = check_points(points, self.identity.dimension)
        ready = [
            models.PointStruct(id=p.id, vector=p.vector.tolist(), payload=p.payload)
            for p in checked
        ]
        for chunk in _chunks(ready):
            self._ask(partial(_upsert, self._there, chunk))

    def overwrite_payloads(self, payloads: Mapping[str, Payload]) -> int:
        """Replace the payloads of those ids that exist, and return how many did."""
        checked = {check_id(id): check_payload(payload, id) for id, payload in payloads.items()}
        held = self.retrieve(list(checked))
        operations = [
            models.OverwritePayloadOperation(
                overwrite_payload=models.SetPayload(payload=checked[id], points=[id])
            )
            for id in held
        ]
        for chunk in _chunks(operations):
            self._ask(partial(_change, self._there, chunk))
        return len(held)

    def retrieve(self, ids: Sequence[str], *, with_vectors: bool = False) -> dict[str, Record]:
        """Return those points that exist, by the ids as they were given."""
        canonical = {id: check_id(id) for id in ids}
        found: dict[str, Record] = {}
        for chunk in _chunks(list(dict.fromkeys(canonical.values()))):
            records = self._ask(partial(_retrieve, self._there, chunk, with_vectors))
            found |= {str(record.id): _record(record) for record in records}
        return {id: found[uuid] for id, uuid in canonical.items() if uuid in found}

    def delete(self, ids: Sequence[str]) -> int:
        """Delete points by id and return how many existed."""
        held = list(self.retrieve([check_id(id) for id in ids]))
        for chunk in _chunks(held):
            self._ask(partial(_delete, self._there, chunk))
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
    ) -> list[Match]:
        """Return the `top_k` most similar points after the first `offset`, best first."""
        check_query(top_k, offset, score_threshold)
        unit = check_vector(vector, self.identity.dimension, "the query vector")
        response = self._ask(
            lambda client: client.query_points(
                self._there,
                query=unit.tolist(),
                query_filter=server_filter(filter),
                limit=top_k,
                offset=offset,
                score_threshold=score_threshold,
                with_payload=True,
                with_vectors=with_vectors,
            )
        )
        return [Match(str(p.id), p.score, p.payload or {}, _vector(p)) for p in response.points]

    def scroll(
        self, *, filter: Filter | None = None, limit: int = 1000, start: str | None = None
    ) -> tuple[list[Record], str | None]:
        """Return points in the order of their ids, from `start`, and where to go on."""
        offset = None if start is None else check_id(start)
        records, following = self._ask(
            lambda client: client.scroll(
                self._there,
                scroll_filter=server_filter(filter),
                limit=limit,
                offset=offset,
                with_payload=True,
            )
        )
        return [_record(record) for record in records], None if following is None else str(
            following
        )

    def count(self, *, filter: Filter | None = None) -> int:
        """Return the exact number of points; of those that pass `filter`."""
        wanted = server_filter(filter)
        return self._ask(lambda c: c.count(self._there, count_filter=wanted, exact=True)).count


class ServerStore:
    """The collections of the server that `client` speaks to.

    Every call raises `StoreUnavailable` when the server does not answer, or not with success.
    The client may also be qdrant-client's local mode, which tests use: it has no indexes to
    create and is not thread-safe, so there calls take turns.
    """

    def __init__(
        self, client: QdrantClient, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        options = client.init_options
        self._client = client
        self._closed = False
        self._sleep = sleep
        self._local = options["location"] == ":memory:" or options["path"] is not None
        self._turn: AbstractContextManager[object] = (
            threading.RLock() if self._local else nullcontext()
        )
        port = options["grpc_port"] if options["prefer_grpc"] else options["port"]
        self._address = (
            options["url"] or options["location"] or options["path"] or f"{options['host']}:{port}"
        )

    @classmethod
    def connect(cls, settings: RagSettings) -> ServerStore:
        """Return the store of `qdrant_host`; nothing is sent before the first call.

        The host may carry `http://` or `https://`. Without either the connection is encrypted
        when there is an API key, as in qdrant-client.
        """
        assert settings.qdrant_host
        scheme, _, host = settings.qdrant_host.rstrip("/").rpartition("://")
        if scheme not in ("", "http", "https") or not re.fullmatch(
            r"[\w.-]+|\[[\da-fA-F:.]+\]", host
        ):
            raise StoreUnavailable(
                f"QDRANT_HOST is {settings.qdrant_host!r}: it must be a host name or address, with "
                "http:// or https:// before it if need be; the ports are QDRANT_PORT and "
                "QDRANT_GRPC_PORT"
            )
        key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
        return cls(
            QdrantClient(
                host=host,
                port=settings.qdrant_port,
                grpc_port=settings.qdrant_grpc_port,
                prefer_grpc=True,
                https=scheme == "https" if scheme else bool(key),
                # As a header: given as `api_key`, the client warns about http:// each time.
                headers={"api-key": key} if key else None,
                timeout=TIMEOUT_S,
                check_compatibility=False,  # it asks on a thread of its own, and warns
                # By default a server that was away is tried again only after up to 2 minutes.
                grpc_options={"grpc.max_reconnect_backoff_ms": 2000},
            )
        )

    def open(
        self, name: str, identity: ModelIdentity, *, create: bool = True, staged: bool = False
    ) -> ServerCollection:
        """Open a generation, creating it when missing."""
        check_name(name)
        asked = there(name, identity.generation) if staged else name
        found = self._look(asked)
        if found is None:
            if not create:
                raise missing(name)
            self._create(name, identity)
            if not staged:
                self._point(name, identity.generation)
            found = self._look(asked)
            if found is None:
                raise StoreUnavailable(f"Qdrant at {self._address} did not keep {asked!r}")
        held = _identity(name, found)
        check_identity(name, held, identity)
        self._index(there(name, held.generation), found.payload_schema)
        return ServerCollection(name, held, self)

    def published(self, name: str) -> ServerCollection | None:
        """Open what is published, whichever model made it; None when nothing is."""
        check_name(name)
        found = self._look(name)
        return None if found is None else ServerCollection(name, _identity(name, found), self)

    def generations(self, name: str) -> list[ServerCollection]:
        """Open all generations, the published one first."""
        published = self.published(name)
        first = [] if published is None else [published.identity.generation]
        names = {c.name for c in self.ask(lambda client: client.get_collections()).collections}
        pattern = re.compile(re.escape(name) + r"--([0-9a-f]{8})")
        generations = sorted(m[1] for m in map(pattern.fullmatch, names) if m)
        held = []
        for generation in dict.fromkeys([*first, *generations]):
            found = self._look(there(name, generation))
            if found is not None:
                held.append(ServerCollection(name, _identity(name, found), self))
        return held

    def publish(self, name: str, identity: ModelIdentity) -> None:
        """Make the generation of `identity` the published one, in one step."""
        check_name(name)
        if self._look(there(name, identity.generation)) is None:
            raise missing(name)
        self._point(name, identity.generation)

    def drop(self, name: str, generation: str) -> bool:
        """Delete an unpublished generation and say whether it was there."""
        published = self.published(name)
        if published is not None and published.identity.generation == generation:
            raise is_published(name, generation)
        if self._look(there(name, generation)) is None:
            return False
        self.ask(lambda client: client.delete_collection(there(name, generation)))
        return True

    def close(self) -> None:
        """Close the connections; further calls do nothing."""
        if not self._closed:
            self._closed = True
            self._client.close()

    def ask(self, call: Callable[[QdrantClient], R]) -> R:
        """Make a call, again where that may help, and turn its failure into `StoreUnavailable`.

        Every call of ours may be made twice: points have ids that follow from what they are.
        """
        for attempt in range(1, ATTEMPTS + 1):
            if self._closed:
                raise StoreUnavailable(f"the connection to Qdrant at {self._address} is closed")
            try:
                with self._turn:
                    return call(self._client)
            except (grpc.RpcError, ApiException, ResourceExhaustedResponse, ValueError) as error:
                if _is_missing(error):
                    raise StoreUnavailable(
                        f"Qdrant at {self._address} has the collection no more: it was replaced or "
                        "deleted just now, so ask again"
                    ) from error
                if isinstance(error, ValueError):
                    raise
                delay = _retry_delay(error, attempt)
                if delay is None or attempt == ATTEMPTS:
                    raise StoreUnavailable(
                        f"Qdrant at {self._address} {_explain(error)}"
                    ) from error
                self._sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    def _look(self, name: str) -> models.CollectionInfo | None:
        """Return what the server knows of a collection or alias, None when there is none."""

        def look(client: QdrantClient) -> models.CollectionInfo | None:
            try:
                return client.get_collection(name)
            except (grpc.RpcError, ApiException, ValueError) as error:
                if _is_missing(error):
                    return None
                raise

        return self.ask(look)

    def _create(self, name: str, identity: ModelIdentity) -> None:
        physical = there(name, identity.generation)

        def create(client: QdrantClient) -> None:
            try:
                client.create_collection(
                    physical,
                    vectors_config=models.VectorParams(
                        size=identity.dimension, distance=models.Distance.COSINE
                    ),
                    metadata={METADATA_KEY: identity_to_json(identity)},
                )
            except (grpc.RpcError, ApiException, ValueError):
                # Another process, or a call whose answer was lost, may have been first.
                if not client.collection_exists(physical):
                    raise

        self.ask(create)
        self._index(physical, {})

    def _index(self, physical: str, indexed: Container[str]) -> None:
        """Create the missing payload indexes: who created the collection may have died before."""
        if self._local:
            return
        for field in KEYWORD_FIELDS:
            if field not in indexed:
                keyword = models.KeywordIndexParams(
                    type=models.KeywordIndexType.KEYWORD, is_tenant=field == TENANT_FIELD
                )
                self.ask(partial(_create_index, physical, field, keyword))

    def _point(self, name: str, generation: str) -> None:
        """Point the alias at a generation, in one request."""
        alias = models.CreateAlias(collection_name=there(name, generation), alias_name=name)
        actions: list[models.AliasOperations] = [models.CreateAliasOperation(create_alias=alias)]
        if self._look(name) is not None:
            old = models.DeleteAlias(alias_name=name)
            actions.insert(0, models.DeleteAliasOperation(delete_alias=old))
        self.ask(lambda client: client.update_collection_aliases(actions))


def there(name: str, generation: str) -> str:
    """Return the name that a generation's collection has on the server."""
    return f"{name}--{generation}"


def _identity(name: str, found: models.CollectionInfo) -> ModelIdentity:
    return identity_from_json(name, (found.config.metadata or {}).get(METADATA_KEY))


def _upsert(name: str, points: list[models.PointStruct], client: QdrantClient) -> None:
    client.upsert(name, points, wait=True)


def _change(
    name: str, operations: list[models.OverwritePayloadOperation], client: QdrantClient
) -> None:
    client.batch_update_points(name, operations, wait=True)


def _retrieve(
    name: str, ids: list[str], with_vectors: bool, client: QdrantClient
) -> list[models.Record]:
    return client.retrieve(name, ids, with_payload=True, with_vectors=with_vectors)


def _delete(name: str, ids: list[str], client: QdrantClient) -> None:
    client.delete(name, models.PointIdsList(points=list(ids)), wait=True)


def _create_index(
    name: str, field: str, keyword: models.KeywordIndexParams, client: QdrantClient
) -> None:
    client.create_payload_index(name, field, keyword, wait=True)


def _chunks(items: Sequence[T]) -> Iterator[list[T]]:
    """Yield the items, 256 at a time."""
    for start in range(0, len(items), CHUNK_POINTS):
        yield list(items[start : start + CHUNK_POINTS])


def _record(record: models.Record) -> Record:
    return Record(str(record.id), record.payload or {}, _vector(record))


def _vector(point: models.Record | models.ScoredPoint) -> Vector | None:
    return None if point.vector is None else np.asarray(point.vector, np.float32)


def _is_missing(error: Exception) -> bool:
    if isinstance(error, grpc.RpcError):
        return bool(error.code() == grpc.StatusCode.NOT_FOUND)
    if isinstance(error, UnexpectedResponse):
        return error.status_code == 404
    return isinstance(error, ValueError) and "not found" in str(error)  # local mode


def _retry_delay(error: Exception, attempt: int) -> float | None:
    """Return in how many seconds to try again, None when that is no use."""
    if isinstance(error, ResourceExhaustedResponse):
        return min(float(error.retry_after_s), LONGEST_DELAY_S)
    if isinstance(error, grpc.RpcError):
        passing = error.code() in _PASSING
    elif isinstance(error, UnexpectedResponse):
        passing = error.status_code in (429, 500, 502, 503, 504)
    else:
        passing = True  # no connection
    return FIRST_DELAY_S * 2 ** (attempt - 1) if passing else None


def _explain(error: Exception) -> str:
    if isinstance(error, ResourceExhaustedResponse):
        return f"is busy: try again in {error.retry_after_s} s ({error})"
    if isinstance(error, grpc.RpcError):
        code, details = error.code(), error.details()
        if code == grpc.StatusCode.UNAVAILABLE:
            return f"cannot be reached: {ADVICE} ({details})"
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return "did not answer in time: try again, or look at its load"
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return f"refused the key: set QDRANT_API_KEY to one that may write ({details})"
        return f"answered {code.name}: {details}"
    if isinstance(error, UnexpectedResponse):
        return f"answered {error}"
    return f"cannot be reached: {ADVICE} ({getattr(error, 'source', error)})"
