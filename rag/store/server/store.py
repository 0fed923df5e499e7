"""A Qdrant server as the store, through qdrant-client.

On the server, each version is a collection of its own, `NAME--GENERATION`. NAME is an alias of the
published one. If an operator created an empty collection NAME by hand, the first version copies its
parameters and replaces it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping
from typing import Any, Final, TypeVar

import grpc  # type: ignore[import-untyped]
from pydantic import BaseModel
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from bento.contract.errors import CollectionMismatch, StoreUnavailable
from bento.contract.filters import TENANT_FIELD
from rag.settings import RagSettings
from rag.store.checks import (
    check_identity,
    check_name,
    identity_from_json,
    identity_to_json,
    is_published,
    missing,
)
from rag.store.interface import GENERATION, KEYWORD_FIELDS, ModelIdentity
from rag.store.server.calls import TIMEOUT_S, Calls, NotOnServer, is_transient
from rag.store.server.collection import ServerCollection, name_there

# The key of the identity in the collection's metadata, which Qdrant supports since 1.16. Metadata
# is created atomically with the collection, is part of its snapshots, and is not a point that
# searches would have to skip.
METADATA_KEY: Final = "model_identity"

M = TypeVar("M", bound=BaseModel)


class ServerStore:
    """The collections of a Qdrant server.

    Calls are retried as `rag.store.server.calls` says. Every method raises `StoreUnavailable` when
    the server does not answer, or answers with an error.
    """

    def __init__(
        self,
        client: QdrantClient,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = Calls(client, sleep, clock)

    @classmethod
    def connect(cls, settings: RagSettings) -> ServerStore:
        """Return the store of `qdrant_host`, without connecting yet.

        Raises `StoreUnavailable` if QDRANT_HOST is not a host.
        """
        return cls(make_client(settings))

    def open(
        self, name: str, identity: ModelIdentity, *, create: bool = True, staged: bool = False
    ) -> ServerCollection:
        """Open a version with one call, unless something is missing."""
        check_name(name)
        there = name_there(name, identity.generation)
        found = self._look(there if staged else name)
        if found is None:
            if not create:
                raise missing(name)
            created = self._create(name, identity)
            # If another process has published a version meanwhile, it stays published.
            found = created if staged else self._look(name)
            if found is None:
                self._publish(name, there)
                found = created
        elif create and not staged and self._is_template(name, found):
            found = self._take_over(name, identity, found)
        held = _identity(name, found)
        check_identity(name, held, identity)
        # On every open, since the process that created the collection may have died before this.
        self._create_indexes(there, found.payload_schema, wait=False)
        return ServerCollection(name, held, self._calls)

    def published(self, name: str) -> ServerCollection | None:
        """Open the published version, whichever model filled it; None if there is none."""
        check_name(name)
        return self._open(name, name)

    def generations(self, name: str) -> list[ServerCollection]:
        """Open all versions, the published one first."""
        published = self.published(name)
        first = None if published is None else published.identity.generation
        found = [] if published is None else [published]
        names = (c.name for c in self._calls(lambda client: client.get_collections()).collections)
        for there in sorted(names):
            collection, _, generation = there.partition("--")
            if collection == name and GENERATION.fullmatch(generation) and generation != first:
                held = self._open(name, there)
                found += [] if held is None else [held]  # None: dropped meanwhile
        return found

    def publish(self, name: str, identity: ModelIdentity) -> None:
        """Publish the version of `identity` atomically."""
        check_name(name)
        there = name_there(name, identity.generation)
        held = self._open(name, there)
        if held is None:
            raise missing(name)
        check_identity(name, held.identity, identity)
        self._make_way(name)
        self._publish(name, there)

    def drop(self, name: str, generation: str) -> bool:
        """Delete an unpublished version; return False if there is no version of that name."""
        published = self.published(name)
        if published is not None and published.identity.generation == generation:
            raise is_published(name, generation)
        there = name_there(name, generation)
        if not GENERATION.fullmatch(generation) or self._look(there) is None:
            return False
        self._calls(lambda client: client.delete_collection(there))
        return True

    def close(self) -> None:
        """Close the connections; further calls do nothing."""
        self._calls.close()

    def _look(self, name: str) -> models.CollectionInfo | None:
        """Return the server's information about a collection or an alias; None if there is none."""
        try:
            return self._calls(lambda client: client.get_collection(name))
        except NotOnServer:
            return None

    def _open(self, name: str, there: str) -> ServerCollection | None:
        found = self._look(there)
        return (
            None if found is None else ServerCollection(name, _identity(name, found), self._calls)
        )

    def _is_template(self, name: str, found: models.CollectionInfo) -> bool:
        """Return whether this is an empty collection that an operator created by hand."""
        if METADATA_KEY in (found.config.metadata or {}):
            return False
        if self._calls(lambda client: client.count(name)).count:
            return False
        held = self._calls(lambda client: client.get_collections()).collections
        return name in {collection.name for collection in held}  # not an alias of another

    def _take_over(
        self, name: str, identity: ModelIdentity, template: models.CollectionInfo
    ) -> models.CollectionInfo:
        """Replace an empty collection with a version that has the same parameters."""
        created = self._create(name, identity, like(name, identity, template))
        if self._make_way(name):
            self._publish(name, name_there(name, identity.generation))
            return created
        # Another process has published a version, or written points to the empty collection.
        return self._look(name) or created

    def _make_way(self, name: str) -> bool:
        """Delete an empty collection created by hand, since the alias needs its name.

        Return whether the name is free.
        """
        found = self._look(name)
        if found is None:
            return True
        if not self._is_template(name, found):
            return False
        self._calls(lambda client: client.delete_collection(name))
        return True

    def _create(
        self, name: str, identity: ModelIdentity, parameters: Mapping[str, Any] | None = None
    ) -> models.CollectionInfo:
        """Create a version and its payload indexes, and return the server's information on it."""
        there = name_there(name, identity.generation)
        vectors = models.VectorParams(size=identity.dimension, distance=models.Distance.COSINE)

        def create(client: QdrantClient) -> None:
            try:
                client.create_collection(
                    there,
                    **(parameters or {"vectors_config": vectors}),
                    metadata={METADATA_KEY: identity_to_json(identity)},
                )
            except (grpc.RpcError, ApiException, ValueError) as error:
                # It exists if another process created it, or if an earlier answer was lost.
                if is_transient(error) or not client.collection_exists(there):
                    raise

        self._calls(create)
        self._create_indexes(there, (), wait=True)
        created = self._calls(lambda client: client.get_collection(there))
        check_identity(name, _identity(name, created), identity)
        return created

    def _create_indexes(self, there: str, held: Container[str], *, wait: bool) -> None:
        """Create the missing payload indexes, which takes long in a large collection."""
        for field in KEYWORD_FIELDS:
            if field not in held and not self._calls.local:
                self._create_index(there, field, wait)

    def _create_index(self, there: str, field: str, wait: bool) -> None:
        keyword = models.KeywordIndexParams(
            type=models.KeywordIndexType.KEYWORD, is_tenant=field == TENANT_FIELD
        )
        self._calls(lambda client: client.create_payload_index(there, field, keyword, wait=wait))

    def _publish(self, name: str, there: str) -> None:
        """Point the alias at a version with one request, whether or not the alias exists."""
        self._calls(
            lambda client: client.update_collection_aliases(
                [
                    models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name)),
                    models.CreateAliasOperation(
                        create_alias=models.CreateAlias(collection_name=there, alias_name=name)
                    ),
                ]
            )
        )


def make_client(settings: RagSettings) -> QdrantClient:
    """Return a client of `qdrant_host`. Raises `StoreUnavailable` if that is not a host."""
    try:
        scheme, host = settings.server()
    except ValueError as error:
        raise StoreUnavailable(str(error)) from None
    return QdrantClient(
        host=host,
        port=settings.qdrant_port,
        grpc_port=settings.qdrant_grpc_port,
        prefer_grpc=True,
        https=scheme == "https",
        # As a header: given `api_key`, the client would warn about every http:// address.
        headers={"api-key": settings.key} if settings.key else None,
        timeout=TIMEOUT_S,
        check_compatibility=False,  # the check would start a thread, and warn
        # By default, gRPC waits up to 2 minutes before it reconnects to a server.
        grpc_options={"grpc.max_reconnect_backoff_ms": 2000},
    )


def like(name: str, identity: ModelIdentity, template: models.CollectionInfo) -> Mapping[str, Any]:
    """Return the parameters for creating a collection like `template`.

    They set vectors, HNSW, shards, replicas, storage, quantization and optimizers. Raises
    `CollectionMismatch` when the template's vectors do not fit the encoder.
    """
    params = template.config.params
    vectors = params.vectors
    if (
        not isinstance(vectors, models.VectorParams)
        or (vectors.size, vectors.distance) != (identity.dimension, models.Distance.COSINE)
        or vectors.multivector_config
    ):
        raise CollectionMismatch(
            f"the empty collection {name!r} does not fit this encoder, which needs one vector of "
            f"{identity.dimension} dimensions with Cosine distance. Delete the collection and "
            "create it so, or let the service create it"
        )
    return {
        "vectors_config": vectors,
        "shard_number": params.shard_number,
        "replication_factor": params.replication_factor,
        "write_consistency_factor": params.write_consistency_factor,
        "on_disk_payload": params.on_disk_payload,
        "quantization_config": template.config.quantization_config,
        "hnsw_config": _as(models.HnswConfigDiff, template.config.hnsw_config),
        "optimizers_config": _as(models.OptimizersConfigDiff, template.config.optimizer_config),
    }


def _as(kind: type[M], held: BaseModel | None) -> M | None:
    """Convert a collection's configuration to the type that creating a collection takes."""
    if held is None:
        return None
    given = held.model_dump(exclude_none=True)
    return kind(**{name: value for name, value in given.items() if name in kind.model_fields})


def _identity(name: str, found: models.CollectionInfo) -> ModelIdentity:
    return identity_from_json(name, (found.config.metadata or {}).get(METADATA_KEY))
