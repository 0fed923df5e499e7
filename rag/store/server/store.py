"""A Qdrant server as the store, through qdrant-client.

Each version of a collection is a collection of its own there, `NAME--GENERATION`; NAME is an alias
of the published one. If an operator made an empty collection NAME by hand, it is the template of
the first version, which takes its place.
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
from rag.store.server.calls import TIMEOUT_S, Calls, NotThere, may_pass
from rag.store.server.collection import ServerCollection, name_there

# The collection's own metadata has the identity. So one atomic call creates both, snapshots have
# both, and searches need not skip a point that holds it. Qdrant has metadata since 1.16.
METADATA_KEY: Final = "model_identity"

M = TypeVar("M", bound=BaseModel)


class ServerStore:
    """The collections of the server of `client`, with the retries of `rag.store.server.calls`.

    Every call raises `StoreUnavailable` when the server does not answer with success.
    """

    def __init__(
        self, client: QdrantClient, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._calls = Calls(client, sleep)

    @classmethod
    def connect(cls, settings: RagSettings) -> ServerStore:
        """Return the store of `qdrant_host`, without connecting yet.

        Raises `StoreUnavailable` if QDRANT_HOST is not a host.
        """
        try:
            scheme, host = settings.server()
        except ValueError as error:
            raise StoreUnavailable(str(error)) from None
        return cls(
            QdrantClient(
                host=host,
                port=settings.qdrant_port,
                grpc_port=settings.qdrant_grpc_port,
                prefer_grpc=True,
                https=scheme == "https",
                # As a header: with `api_key`, the client warns about http:// each time.
                headers={"api-key": settings.key} if settings.key else None,
                timeout=TIMEOUT_S,
                check_compatibility=False,  # it starts a thread of its own, and warns
                # By default, gRPC waits up to 2 minutes before it reconnects to a server.
                grpc_options={"grpc.max_reconnect_backoff_ms": 2000},
            )
        )

    def open(
        self, name: str, identity: ModelIdentity, *, create: bool = True, staged: bool = False
    ) -> ServerCollection:
        """Open a version: one call, unless something has to be created."""
        check_name(name)
        there = name_there(name, identity.generation)
        found = self._look(there if staged else name)
        if found is None:
            if not create:
                raise missing(name)
            created = self._create(name, identity)
            # If another process published a version meanwhile, that one stays published.
            found = created if staged else self._look(name)
            if found is None:
                self._publish(name, there)
                found = created
        elif create and not staged and self._is_template(name, found):
            found = self._take_over(name, identity, found)
        held = _identity(name, found)
        check_identity(name, held, identity)
        # Each time: the process that created the collection may have died before this.
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
                found += [] if held is None else [held]  # it may have been dropped meanwhile
        return found

    def publish(self, name: str, identity: ModelIdentity) -> None:
        """Publish the version of `identity`, in one step."""
        check_name(name)
        there = name_there(name, identity.generation)
        held = self._open(name, there)
        if held is None:
            raise missing(name)
        check_identity(name, held.identity, identity)
        self._make_way(name)
        self._publish(name, there)

    def drop(self, name: str, generation: str) -> bool:
        """Delete an unpublished version; return False if there is none of that name."""
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
        except NotThere:
            return None

    def _open(self, name: str, there: str) -> ServerCollection | None:
        found = self._look(there)
        return (
            None if found is None else ServerCollection(name, _identity(name, found), self._calls)
        )

    def _is_template(self, name: str, found: models.CollectionInfo) -> bool:
        """Return whether this is an empty collection that an operator made by hand."""
        if METADATA_KEY in (found.config.metadata or {}):
            return False
        if self._calls(lambda client: client.count(name)).count:
            return False
        held = self._calls(lambda client: client.get_collections()).collections
        return name in {collection.name for collection in held}  # not an alias of another

    def _take_over(
        self, name: str, identity: ModelIdentity, template: models.CollectionInfo
    ) -> models.CollectionInfo:
        """Replace an empty collection by a version with the same parameters."""
        created = self._create(name, identity, like(name, identity, template))
        if self._make_way(name):
            self._publish(name, name_there(name, identity.generation))
            return created
        return self._look(name) or created  # another process was faster, or it has points now

    def _make_way(self, name: str) -> bool:
        """Delete an empty collection made by hand, since an alias needs its name.

        Returns whether the name is free.
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
        """Create a version and its payload indexes; return the server's information about it."""
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
                # Another process may have created it, or a call of ours whose answer was lost.
                if may_pass(error) or not client.collection_exists(there):
                    raise

        self._calls(create)
        self._create_indexes(there, (), wait=True)
        created = self._calls(lambda client: client.get_collection(there))
        check_identity(name, _identity(name, created), identity)
        return created

    def _create_indexes(self, there: str, held: Container[str], *, wait: bool) -> None:
        """Create the missing payload indexes, which takes long for a large collection."""
        for field in KEYWORD_FIELDS:
            if field not in held and not self._calls.local:
                self._create_index(there, field, wait)

    def _create_index(self, there: str, field: str, wait: bool) -> None:
        keyword = models.KeywordIndexParams(
            type=models.KeywordIndexType.KEYWORD, is_tenant=field == TENANT_FIELD
        )
        self._calls(lambda client: client.create_payload_index(there, field, keyword, wait=wait))

    def _publish(self, name: str, there: str) -> None:
        """Point the alias at a version, in one request, whether or not the alias exists."""
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


def like(name: str, identity: ModelIdentity, template: models.CollectionInfo) -> Mapping[str, Any]:
    """Return the parameters of a collection, to create another one like it.

    These are vectors, HNSW, shards, replicas, storage, quantization and optimizers. Raises
    `CollectionMismatch` when its vectors do not fit the encoder.
    """
    params = template.config.params
    vectors = params.vectors
    if (
        not isinstance(vectors, models.VectorParams)
        or (vectors.size, vectors.distance) != (identity.dimension, models.Distance.COSINE)
        or vectors.multivector_config
    ):
        raise CollectionMismatch(
            f"the empty collection {name!r} was not made for one vector of {identity.dimension} "
            "dimensions by Cosine, as this encoder makes them: delete it and make it so, or leave "
            "that to this program"
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
    """Return a collection's parameters in the form in which they are set."""
    if held is None:
        return None
    given = held.model_dump(exclude_none=True)
    return kind(**{name: value for name, value in given.items() if name in kind.model_fields})


def _identity(name: str, found: models.CollectionInfo) -> ModelIdentity:
    return identity_from_json(name, (found.config.metadata or {}).get(METADATA_KEY))
