"""A fake Qdrant server: it answers gRPC calls on the loopback, with faults on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc  # type: ignore[import-untyped]
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as wire
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc import collections_service_pb2_grpc as collections_rpc
from qdrant_client.grpc import points_service_pb2_grpc as points_rpc
from qdrant_client.local.qdrant_local import QdrantLocal

from rag.store.interface import Store
from rag.store.opening import open_store
from rag.store.server.store import ServerStore
from tests.support.rag.engines import settings

WRITES = ("Create", "Delete", "UpdateAliases", "CreateFieldIndex", "Upsert", "UpdateBatch")


@dataclass
class Fault:
    """A failure of the next call of a method."""

    method: str  # such as Upsert
    code: grpc.StatusCode | None  # None: the call is never answered
    applied: bool = False  # the call takes effect, although it fails
    retry_after: int | None = None  # seconds


class Loopback:
    """Answer the calls that `ServerStore` makes, and keep the points in qdrant-client's local mode.

    `calls` lists the methods that were called, and `writes` the requests of those in `WRITES`.
    """

    def __init__(self) -> None:
        self.data = QdrantLocal(":memory:")
        self.calls: list[str] = []
        self.writes: list[Any] = []
        self.faults: list[Fault] = []
        self.indexes: dict[tuple[str, str], Any] = {}
        self.before: dict[str, Callable[[], object]] = {}  # runs once, before a call of the method
        self.hidden: list[str] = []  # each name is reported missing once
        self.keeps_metadata = True
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self.start()

    def start(self, port: int = 0) -> None:
        self.server = grpc.server(ThreadPoolExecutor(8), interceptors=[Interceptor(self)])
        for add, servicer in (
            (collections_rpc.add_CollectionsServicer_to_server, Collections(self)),
            (points_rpc.add_PointsServicer_to_server, Points(self)),
        ):
            add(servicer, self.server)  # type: ignore[no-untyped-call]
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()

    def connect(self) -> Store:
        return open_store(settings(qdrant_host="127.0.0.1", qdrant_grpc_port=self.port))

    def impatient(
        self, sleep: Callable[[float], None], clock: Callable[[], float] = time.monotonic
    ) -> ServerStore:
        """Return a store whose calls time out after 1 s, and that pauses by calling `sleep`."""
        client = QdrantClient(
            host="127.0.0.1",
            grpc_port=self.port,
            prefer_grpc=True,
            timeout=1,
            check_compatibility=False,
        )
        return ServerStore(client, sleep=sleep, clock=clock)

    def stop(self) -> None:
        self._stopped.set()
        self.server.stop(None).wait()
        self.data.close()

    def answer(self, method: str, serve: Any, request: Any, context: Any) -> Any:
        if meanwhile := self.before.pop(method, None):
            meanwhile()
        fault = next((f for f in self.faults if f.method == method), None)
        if fault is not None:
            self.faults.remove(fault)
        answer = None
        with self._lock:
            self.calls.append(method)
            if fault is None or fault.applied:
                answer = self._serve(method, serve, request, context)
        if fault is None:
            return answer
        if fault.code is None:
            self._stopped.wait(10)
            return answer
        if fault.retry_after is not None:
            context.set_trailing_metadata((("retry-after", str(fault.retry_after)),))
        context.abort(fault.code, "an injected fault")

    def _serve(self, method: str, serve: Any, request: Any, context: Any) -> Any:
        if method in WRITES:
            self.writes.append(request)
        try:
            return serve(request, context)
        except ValueError as error:  # from local mode; the server words it differently
            if "not found" in str(error):
                context.abort(grpc.StatusCode.NOT_FOUND, "Not found: Collection doesn't exist!")
            if "already exists" in str(error):
                context.abort(grpc.StatusCode.ALREADY_EXISTS, f"Wrong input: {error}")
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Wrong input: {error}")


class Interceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, loopback: Loopback) -> None:
        self._loopback = loopback

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        method = details.method.rpartition("/")[2]

        def serve(request: Any, context: Any) -> Any:
            return self._loopback.answer(method, handler.unary_unary, request, context)

        return grpc.unary_unary_rpc_method_handler(
            serve,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


class Collections(collections_rpc.CollectionsServicer):
    def __init__(self, loopback: Loopback) -> None:
        self._loopback = loopback
        self._data = loopback.data

    def CollectionExists(self, request: Any, context: Any) -> Any:
        exists = self._data.collection_exists(request.collection_name)
        return wire.CollectionExistsResponse(result=wire.CollectionExists(exists=exists))

    def Create(self, request: Any, context: Any) -> Any:
        metadata = GrpcToRest.convert_payload(request.metadata)
        self._data.create_collection(
            request.collection_name,
            GrpcToRest.convert_vectors_config(request.vectors_config),
            metadata=metadata if self._loopback.keeps_metadata else None,
        )
        return wire.CollectionOperationResponse(result=True)

    def Delete(self, request: Any, context: Any) -> Any:
        deleted = self._data.delete_collection(request.collection_name)
        return wire.CollectionOperationResponse(result=deleted)

    def Get(self, request: Any, context: Any) -> Any:
        name = request.collection_name
        if name in self._loopback.hidden:
            self._loopback.hidden.remove(name)
            raise ValueError("not found")
        info = RestToGrpc.convert_collection_info(self._data.get_collection(name))
        aliases = {a.alias_name: a.collection_name for a in self._data.get_aliases().aliases}
        for (collection, field), params in self._loopback.indexes.items():
            if collection == aliases.get(name, name):
                keyword = wire.PayloadSchemaType.Keyword
                schema = wire.PayloadSchemaInfo(data_type=keyword, params=params)
                info.payload_schema[field].CopyFrom(schema)
        return wire.GetCollectionInfoResponse(result=info)

    def List(self, request: Any, context: Any) -> Any:
        held = self._data.get_collections().collections
        return wire.ListCollectionsResponse(
            collections=[wire.CollectionDescription(name=c.name) for c in held]
        )

    def UpdateAliases(self, request: Any, context: Any) -> Any:
        actions = [GrpcToRest.convert_alias_operations(action) for action in request.actions]
        self._data.update_collection_aliases(actions)
        return wire.CollectionOperationResponse(result=True)


class Points(points_rpc.PointsServicer):
    def __init__(self, loopback: Loopback) -> None:
        self._loopback = loopback
        self._data = loopback.data

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:
        key = (request.collection_name, request.field_name)
        self._loopback.indexes[key] = request.field_index_params
        return done()

    def Upsert(self, request: Any, context: Any) -> Any:
        points = [GrpcToRest.convert_point_struct(p) for p in request.points]
        self._data.upsert(request.collection_name, points)
        return done()

    def UpdateBatch(self, request: Any, context: Any) -> Any:
        operations = [GrpcToRest.convert_points_update_operation(o) for o in request.operations]
        self._data.batch_update_points(request.collection_name, operations)
        return wire.UpdateBatchResponse(result=[done().result] * len(operations))

    def Delete(self, request: Any, context: Any) -> Any:
        selector = GrpcToRest.convert_points_selector(request.points)
        self._data.delete(request.collection_name, selector)
        return done()

    def Get(self, request: Any, context: Any) -> Any:
        records = self._data.retrieve(
            request.collection_name,
            [GrpcToRest.convert_point_id(i) for i in request.ids],
            with_payload=request.with_payload.enable,
            with_vectors=request.with_vectors.enable,
        )
        return wire.GetResponse(result=[record(r) for r in records])

    def Scroll(self, request: Any, context: Any) -> Any:
        start = GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None
        records, following = self._data.scroll(
            request.collection_name,
            condition(request),
            limit=request.limit,
            offset=start,
            with_payload=request.with_payload.enable,
            with_vectors=request.with_vectors.enable,
        )
        answer = wire.ScrollResponse(result=[record(r) for r in records])
        if following is not None:
            answer.next_page_offset.CopyFrom(RestToGrpc.convert_extended_point_id(following))
        return answer

    def Query(self, request: Any, context: Any) -> Any:
        threshold = request.score_threshold if request.HasField("score_threshold") else None
        found = self._data.query_points(
            request.collection_name,
            GrpcToRest.convert_query(request.query),
            query_filter=condition(request),
            limit=request.limit,
            offset=request.offset,
            score_threshold=threshold,
            with_payload=request.with_payload.enable,
            with_vectors=request.with_vectors.enable,
        )
        return wire.QueryResponse(result=[RestToGrpc.convert_scored_point(p) for p in found.points])

    def Count(self, request: Any, context: Any) -> Any:
        found = self._data.count(request.collection_name, condition(request))
        return wire.CountResponse(result=wire.CountResult(count=found.count))


def record(found: models.Record) -> Any:
    return RestToGrpc.convert_record(found.model_copy(update={"payload": found.payload or {}}))


def condition(request: Any) -> models.Filter | None:
    return GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None


def done() -> Any:
    result = wire.UpdateResult(operation_id=1, status=wire.UpdateStatus.Completed)
    return wire.PointsOperationResponse(result=result)
