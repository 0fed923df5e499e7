"""A Qdrant server as the store, through qdrant-client."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import grpc  # type: ignore[import-untyped]
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from rag.errors import StoreUnavailable
from rag.settings import RagSettings
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

TIMEOUT_S = 10
CHUNK_POINTS = 256

# The identity lies in the collection's own metadata: one atomic call creates both, it goes
# where the collection goes (snapshots, aliases), and no point has to be kept out of results.
# Qdrant keeps metadata since 1.16.
METADATA_KEY = "model_identity"

ADVICE = "start it, or correct QDRANT_HOST, QDRANT_PORT, QDRANT_GRPC_PORT and QDRANT_API_KEY"


class ServerCollection:
    """An open collection of a server."""

    def __init__(self, name: str, identity: ModelIdentity, store: ServerStore) -> None:
        self.name = name
        self.identity = identity
        self._store = store

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert or replace points, 256 a call; all are checked before any is written.

        When a call fails, those before it stay written: sending all again is safe.
        """
        checked = check_points(points, self.identity.dimension)
        ready = [
            models.PointStruct(id=p.id, vector=p.vector.tolist(), payload=p.payload)
            for p in checked
        ]
        for start in range(0, len(ready), CHUNK_POINTS):
            with self._store.answering() as client:
                client.upsert(self.name, ready[start : start + CHUNK_POINTS], wait=True)

    def retrieve(self, ids: Sequence[str]) -> dict[str, Payload]:
        """Return the payloads of those ids that exist."""
        canonical = {id: check_id(id) for id in ids}
        found: dict[str, Payload] = {}
        for chunk in _chunks(canonical.values()):
            with self._store.answering() as client:
                records = client.retrieve(self.name, chunk, with_payload=True)
            found |= {str(record.id): record.payload or {} for record in records}
        return {id: found[uuid] for id, uuid in canonical.items() if uuid in found}

    def delete(self, ids: Sequence[str]) -> int:
        """Delete points by id and return how many existed."""
        deleted = 0
        for chunk in _chunks(check_id(id) for id in ids):
            with self._store.answering() as client:
                records = client.retrieve(self.name, chunk, with_payload=False)
                if records:
                    existing = models.PointIdsList(points=[record.id for record in records])
                    client.delete(self.name, existing, wait=True)
            deleted += len(records)
        return deleted

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
        with self._store.answering() as client:
            response = client.query_points(
                self.name,
                query=unit.tolist(),
                query_filter=_tenant(dao_id),
                limit=top_k,
                score_threshold=score_threshold,
                with_payload=True,
            )
        return [Match(str(p.id), p.score, p.payload or {}) for p in response.points]

    def count(self, *, dao_id: str | None = None) -> int:
        """Return the exact number of points; of one tenant if given."""
        with self._store.answering() as client:
            return client.count(self.name, count_filter=_tenant(dao_id), exact=True).count


class ServerStore:
    """The collections of the server that `client` speaks to.

    Every call raises `StoreUnavailable` when the server does not answer, or not with success.
    The client may also be qdrant-client's local mode, which tests use: it has no indexes to
    create and is not thread-safe, so there calls take turns.
    """

    def __init__(self, client: QdrantClient) -> None:
        options = client.init_options
        self._client = client
        self._closed = False
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

    def open(self, name: str, identity: ModelIdentity, *, create: bool = True) -> ServerCollection:
        """Open a collection, creating it when missing."""
        check_name(name)
        with self.answering() as client:
            if not client.collection_exists(name):
                if not create:
                    raise missing(name)
                self._create(name, identity)
            collection = client.get_collection(name)
        held = identity_from_json(name, (collection.config.metadata or {}).get(METADATA_KEY))
        check_identity(name, held, identity)
        # Looked for each time: who created the collection may have died before the index.
        if not self._local and TENANT_FIELD not in collection.payload_schema:
            tenant = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
            with self.answering() as client:
                client.create_payload_index(name, TENANT_FIELD, tenant, wait=True)
        return ServerCollection(name, held, self)

    def info(self, name: str) -> CollectionInfo | None:
        """Return what a collection holds, or None when there is none of that name."""
        check_name(name)
        with self.answering() as client:
            if not client.collection_exists(name):
                return None
            metadata = client.get_collection(name).config.metadata or {}
            points = client.count(name, exact=True).count
        return CollectionInfo(name, points, identity_from_json(name, metadata.get(METADATA_KEY)))

    def close(self) -> None:
        """Close the connections; further calls do nothing."""
        if not self._closed:
            self._closed = True
            self._client.close()

    @contextmanager
    def answering(self) -> Iterator[QdrantClient]:
        """Lend the client, and turn what goes wrong with it into `StoreUnavailable`."""
        if self._closed:
            raise StoreUnavailable(f"the connection to Qdrant at {self._address} is closed")
        with self._turn:
            try:
                yield self._client
            except (grpc.RpcError, ApiException, ResourceExhaustedResponse) as error:
                raise StoreUnavailable(f"Qdrant at {self._address} {_explain(error)}") from error

    def _create(self, name: str, identity: ModelIdentity) -> None:
        try:
            self._client.create_collection(
                name,
                vectors_config=models.VectorParams(
                    size=identity.dimension, distance=models.Distance.COSINE
                ),
                metadata={METADATA_KEY: identity_to_json(identity)},
            )
        except (grpc.RpcError, ApiException):
            # Another process may have been first: then its collection is opened and checked.
            if not self._client.collection_exists(name):
                raise


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield the distinct ids, 256 at a time."""
    distinct = list(dict.fromkeys(ids))
    for start in range(0, len(distinct), CHUNK_POINTS):
        yield distinct[start : start + CHUNK_POINTS]


def _tenant(dao_id: str | None) -> models.Filter | None:
    if dao_id is None:
        return None
    match = models.MatchValue(value=dao_id)
    return models.Filter(must=[models.FieldCondition(key=TENANT_FIELD, match=match)])


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
