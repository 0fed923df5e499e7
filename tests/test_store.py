"""What every store keeps to, asked of each engine, and what is special to one of them.

Engine `server` needs a Qdrant server at QDRANT_URL (with gRPC at QDRANT_GRPC_PORT, else 6334);
`grpc` speaks the same protocol to the stand-in `Loopback`, which keeps points in local mode.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid4, uuid5

import grpc
import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as wire
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc import collections_service_pb2_grpc as collections_rpc
from qdrant_client.grpc import points_service_pb2_grpc as points_rpc
from qdrant_edge import CountRequest, EdgeShard

from rag.edge import FLUSH_POINTS, EdgeStore
from rag.errors import CollectionMismatch, InvalidSearch, StoreLocked, StoreUnavailable
from rag.server import ServerStore
from rag.settings import RagSettings
from rag.store import ModelIdentity, Point, Store, open_store

ROOT = Path(__file__).parent.parent
DIM = 16
CLIP = ModelIdentity("ViT-B-32", "openai", "sha256:aaaa", "resize224", DIM)
OTHER = ModelIdentity("ViT-L-14", "laion2b", "sha256:bbbb", "resize336", DIM)


def point_id(key: object) -> str:
    return str(uuid5(NAMESPACE_URL, str(key)))


def make_points(count: int, seed: int = 0, **payload: Any) -> list[Point]:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return [Point(point_id(f"{seed}/{n}"), vectors[n], {"n": n, **payload}) for n in range(count)]


def cosines(points: list[Point], vector: Any) -> Any:
    rows = np.stack([p.vector for p in points]).astype(np.float64)
    return rows @ vector / np.linalg.norm(rows, axis=1) / np.linalg.norm(vector)


def settings(**values: Any) -> RagSettings:
    return RagSettings(_env_file=None, **values)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run a script in another process; not by importing this file, which takes seconds."""
    prelude = "\n".join(
        (
            "from __future__ import annotations",
            "import os, signal, sys",
            "from dataclasses import replace",
            "from pathlib import Path",
            "from typing import Any",
            "from uuid import NAMESPACE_URL, uuid5",
            "import numpy as np",
            "from rag.edge import EdgeStore",
            "from rag.errors import StoreLocked",
            "from rag.store import ModelIdentity, Point",
            f"DIM, CLIP = {DIM}, {CLIP!r}",
            inspect.getsource(point_id),
            inspect.getsource(make_points),
        )
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", prelude + script, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )


# The stand-in for a server -----------------------------------------------------------------


class Loopback:
    """A gRPC server on the loopback with the calls that `ServerStore` makes.

    Keeps points in local mode and records what it was sent to change.
    """

    def __init__(self) -> None:
        self.data = QdrantClient(":memory:")
        self.lock = threading.RLock()
        self.indexes: dict[str, Any] = {}
        self.writes: list[Any] = []
        self.hide_collections = 0  # so many answers more are that there is no such collection
        self.keeps_metadata = True
        self.busy = False
        self.server = grpc.server(ThreadPoolExecutor(8))
        collections_rpc.add_CollectionsServicer_to_server(LoopbackCollections(self), self.server)
        points_rpc.add_PointsServicer_to_server(LoopbackPoints(self), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def connect(self) -> Store:
        return open_store(settings(qdrant_host="127.0.0.1", qdrant_grpc_port=self.port))

    def stop(self) -> None:
        self.server.stop(None).wait()
        self.data.close()


class LoopbackCollections(collections_rpc.CollectionsServicer):
    def __init__(self, loopback: Loopback) -> None:
        self.loopback = loopback

    def CollectionExists(self, request: Any, context: Any) -> Any:
        with self.loopback.lock:
            exists = self.loopback.data.collection_exists(request.collection_name)
            if self.loopback.hide_collections:
                self.loopback.hide_collections -= 1
                exists = False
        return wire.CollectionExistsResponse(result=wire.CollectionExists(exists=exists))

    def Create(self, request: Any, context: Any) -> Any:
        with self.loopback.lock:
            if self.loopback.data.collection_exists(request.collection_name):
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"Wrong input: Collection `{request.collection_name}` already exists!",
                )
            self.loopback.writes.append(request)
            metadata = GrpcToRest.convert_payload(request.metadata)
            self.loopback.data.create_collection(
                request.collection_name,
                GrpcToRest.convert_vectors_config(request.vectors_config),
                metadata=metadata if self.loopback.keeps_metadata else None,
            )
        return wire.CollectionOperationResponse(result=True)

    def Get(self, request: Any, context: Any) -> Any:
        with self.loopback.lock:
            info = RestToGrpc.convert_collection_info(
                self.loopback.data.get_collection(request.collection_name)
            )
        for field, params in self.loopback.indexes.items():
            schema = wire.PayloadSchemaInfo(data_type=wire.PayloadSchemaType.Keyword, params=params)
            info.payload_schema[field].CopyFrom(schema)
        return wire.GetCollectionInfoResponse(result=info)


class LoopbackPoints(points_rpc.PointsServicer):
    def __init__(self, loopback: Loopback) -> None:
        self.loopback = loopback

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:
        self.loopback.writes.append(request)
        self.loopback.indexes[request.field_name] = request.field_index_params
        return done()

    def Upsert(self, request: Any, context: Any) -> Any:
        if self.loopback.busy:
            context.set_trailing_metadata((("retry-after", "7"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many writes")
        with self.loopback.lock:
            self.loopback.writes.append(request)
            points = [GrpcToRest.convert_point_struct(p) for p in request.points]
            self.loopback.data.upsert(request.collection_name, points)
        return done()

    def Delete(self, request: Any, context: Any) -> Any:
        with self.loopback.lock:
            self.loopback.writes.append(request)
            selector = GrpcToRest.convert_points_selector(request.points)
            self.loopback.data.delete(request.collection_name, selector)
        return done()

    def Get(self, request: Any, context: Any) -> Any:
        ids = [GrpcToRest.convert_point_id(i) for i in request.ids]
        with self.loopback.lock:
            records = self.loopback.data.retrieve(request.collection_name, ids)
        return wire.GetResponse(result=[RestToGrpc.convert_record(r) for r in records])

    def Query(self, request: Any, context: Any) -> Any:
        threshold = request.score_threshold if request.HasField("score_threshold") else None
        with self.loopback.lock:
            found = self.loopback.data.query_points(
                request.collection_name,
                GrpcToRest.convert_query(request.query).nearest,
                query_filter=condition(request),
                limit=request.limit,
                score_threshold=threshold,
            )
        return wire.QueryResponse(result=[RestToGrpc.convert_scored_point(p) for p in found.points])

    def Count(self, request: Any, context: Any) -> Any:
        with self.loopback.lock:
            found = self.loopback.data.count(request.collection_name, condition(request))
        return wire.CountResponse(result=wire.CountResult(count=found.count))


def condition(request: Any) -> models.Filter | None:
    return GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None


def done() -> Any:
    result = wire.UpdateResult(operation_id=1, status=wire.UpdateStatus.Completed)
    return wire.PointsOperationResponse(result=result)


# The engines -------------------------------------------------------------------------------


@dataclass
class Engine:
    """A store, how to open it anew, and a collection name that nobody else uses."""

    connect: Callable[[], Store]
    name: str
    store: Store

    def reopen(self) -> Store:
        self.store.close()
        self.store = self.connect()
        return self.store


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is plenty: creating a shard waits for the disk 5 times."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 1 << 30:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(params=["embedded", "local", "grpc", "server"])
def engine(request: pytest.FixtureRequest, quick_folder: Path) -> Iterator[Engine]:
    name = f"test_{uuid4().hex[:12]}"
    loopback = None
    if request.param == "embedded":

        def connect() -> Store:
            return EdgeStore(quick_folder)

    elif request.param == "local":

        def connect() -> Store:
            return ServerStore(QdrantClient(":memory:"))

    elif request.param == "local-files":

        def connect() -> Store:
            return ServerStore(QdrantClient(path=str(quick_folder)))

    elif request.param == "grpc":
        loopback = Loopback()
        connect = loopback.connect
    else:
        url = urlsplit(os.environ.get("QDRANT_URL", ""))
        if not url.hostname:
            pytest.skip("QDRANT_URL is not set: no Qdrant server to test against")

        def connect() -> Store:
            return open_store(
                settings(qdrant_host=f"{url.scheme}://{url.hostname}", qdrant_port=url.port or 6333)
            )

    engine = Engine(connect, name, connect())
    yield engine
    engine.store.close()
    if request.param == "server":
        with closing(connect()) as store:
            assert isinstance(store, ServerStore)
            store._client.delete_collection(name)
    if loopback is not None:
        loopback.stop()


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    loopback = Loopback()
    yield loopback
    loopback.stop()


# What every engine keeps to ----------------------------------------------------------------


def test_a_query_finds_the_most_similar_first_with_cosine_scores(engine: Engine) -> None:
    collection = engine.store.open(engine.name, CLIP)
    points = make_points(300)
    collection.upsert(points)
    query = np.random.default_rng(7).normal(size=DIM).astype(np.float32)

    matches = collection.query(query, 20)

    expected = cosines(points, query)
    best = np.argsort(-expected)[:20]
    assert [m.id for m in matches] == [points[n].id for n in best]
    np.testing.assert_allclose([m.score for m in matches], expected[best], atol=1e-5)
    assert [m.payload for m in matches] == [points[n].payload for n in best]


@pytest.mark.parametrize("length", [1e-30, 1e-5, 1e5, 1e30])
def test_the_length_of_a_vector_does_not_change_its_score(engine: Engine, length: float) -> None:
    collection = engine.store.open(engine.name, CLIP)
    points = make_points(3)
    collection.upsert([replace(p, vector=p.vector * np.float32(length)) for p in points])

    matches = collection.query(points[1].vector * np.float32(length), 3)

    assert matches[0].id == points[1].id
    expected = np.sort(cosines(points, points[1].vector))[::-1]
    np.testing.assert_allclose([m.score for m in matches], expected, atol=1e-5)


def test_a_point_with_the_same_id_replaces_the_old_one(engine: Engine) -> None:
    collection = engine.store.open(engine.name, CLIP)
    old, new = make_points(2)
    new = replace(new, id=old.id.upper(), payload={"title": "new"})
    collection.upsert([old])
    collection.upsert([new])

    assert collection.count() == 1
    assert collection.retrieve([old.id]) == {old.id: {"title": "new"}}
    assert collection.query(new.vector, 1)[0].score == pytest.approx(1, abs=1e-5)


def test_the_last_of_two_points_with_one_id_stays(engine: Engine) -> None:
    collection = engine.store.open(engine.name, CLIP)
    first, second = make_points(2)
    collection.upsert([first, replace(second, id=first.id)])

    assert collection.count() == 1
    assert collection.retrieve([first.id]) == {first.id: second.payload}


def test_a_tenant_sees_its_own_points_only(engine: Engine) -> None:
    collection = engine.store.open(engine.name, CLIP)
    ours, theirs = make_points(5, 1, dao_id="ours"), make_points(7, 2, dao_id="theirs")
    collection.upsert(ours + theirs + make_points(3, 3))
    query = theirs[0].vector

    assert {m.id for m in collection.query(query, 50, dao_id="ours")} == {p.id for p in ours}
    assert collection.query(query, 50, dao_id="nobody") == []
    assert collection.query(query, 50, dao_id="") == []
    assert len(collection.query(query, 50)) == 15
    assert [collection.count(dao_id=d) for d in ("ours", "theirs", "", None)] == [5, 7, 0, 15]


def test_points_below_the_score_threshold_are_left_out(engine: Engine) -> None:
    collection = engine.store.open(engine.name, CLIP)
    points = make_points(100)
    collection.upsert(points)
    expected = np.sort(cosines(points, points[0].vector))[::-1]
    threshold = float(expected[9] + expected[10]) / 2

    found = collection.query(points[0].vector, 100, score_threshold=threshold)

    assert len(found) == 10
    assert len(collection.query(points[0].vector, 100, score_threshold=-1)) == 100


def test_retrieve_returns_the_payloads_of_those_that_exist(engine: Engine) -> None:
    collection = engine.store.open(engine.name, CLIP)
    payload = {"title": "кіт", "tags": ["a", "b"], "size": {"w": 2, "x": 0.5}, "none": None}
    points = [replace(p, payload={**payload, **p.payload}) for p in make_points(3)]
    collection.upsert(points)
    shouted = points[2].id.upper()

    found = collection.retrieve([points[0].id, point_id("missing"), shouted])

    assert found == {points[0].id: points[0].payload, shouted: points[2].payload}
    assert collection.retrieve([]) == {}


def test_delete_says_how_many_existed(engine: Engine) -> None:
    collection = engine.store.open(engine.name, CLIP)
    points = make_points(600)
    collection.upsert(points)
    ids = [p.id for p in points]

    assert collection.delete([ids[0], ids[0].upper(), ids[1], point_id("missing")]) == 2
    assert collection.delete(ids[:3]) == 1
    assert collection.delete([]) == 0
    assert collection.count() == 597
    assert collection.delete(ids) == 597
    assert collection.query(points[0].vector, 5) == []


def test_another_model_is_refused_and_both_are_named(engine: Engine) -> None:
    collection = engine.store.open(engine.name, CLIP)
    collection.upsert(make_points(1))
    for wanted in (OTHER, replace(CLIP, weights_digest="sha256:cccc")):
        with pytest.raises(CollectionMismatch) as caught:
            engine.store.open(engine.name, wanted)
        sentence = str(caught.value)
        for identity in (CLIP, wanted):
            assert f"{identity.model_name}/{identity.pretrained}" in sentence
            assert identity.weights_digest in sentence
        assert "IMAGE_SEARCH_COLLECTION" in sentence
        assert engine.name in sentence
    assert engine.store.open(engine.name, CLIP).count() == 1


@pytest.mark.parametrize("engine", ["embedded", "local-files", "grpc", "server"], indirect=True)
def test_reopening_keeps_points_and_identity(engine: Engine) -> None:
    points = make_points(30, dao_id="ours")
    collection = engine.store.open(engine.name, CLIP)
    collection.upsert(points)
    collection.delete([points[0].id])

    store = engine.reopen()

    info = store.info(engine.name)
    assert info is not None
    assert (info.name, info.points, info.identity) == (engine.name, 29, CLIP)
    with pytest.raises(CollectionMismatch):
        store.open(engine.name, OTHER)
    collection = store.open(engine.name, CLIP)
    assert (collection.name, collection.identity) == (engine.name, CLIP)
    assert collection.retrieve([points[5].id]) == {points[5].id: points[5].payload}
    assert collection.query(points[5].vector, 1, dao_id="ours")[0].id == points[5].id


def test_info_of_a_missing_collection_is_none_and_makes_none(engine: Engine) -> None:
    assert engine.store.info(engine.name) is None
    engine.store.open(engine.name, CLIP)
    info = engine.store.info(engine.name)
    assert info is not None
    assert info.points == 0


def test_one_bad_point_is_refused_and_nothing_of_its_batch_written(engine: Engine) -> None:
    collection = engine.store.open(engine.name, CLIP)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"vector": np.ones(DIM - 1, np.float32)}, "(16,)"),
        ({"vector": np.ones((1, DIM), np.float32)}, "(16,)"),
        ({"vector": np.full(DIM, np.nan, np.float32)}, "NaN"),
        ({"vector": np.full(DIM, -np.inf, np.float32)}, "infinity"),
        ({"vector": np.zeros(DIM, np.float32)}, "zeros"),
        ({"vector": ["a"] * DIM}, "numbers"),
        ({"id": "cat.png"}, "cat.png"),
        ({"id": 7}, "UUID"),
        ({"payload": {"at": Path("x")}}, "JSON"),
        ({"payload": {"at": float("nan")}}, "JSON"),
        ({"payload": {"at": "\ud800"}}, "JSON"),
        ({"payload": {"at": 2**63}}, "64 bits"),
    ]
    points = make_points(300)
    for change, said in bad:
        with pytest.raises(InvalidSearch) as caught:
            collection.upsert([*points[:299], replace(points[299], **change)])
        assert said in str(caught.value)
        assert collection.count() == 0, change


def test_a_query_that_cannot_be_answered_is_refused(engine: Engine) -> None:
    collection = engine.store.open(engine.name, CLIP)
    good = np.ones(DIM, np.float32)
    for bad in (np.ones(DIM + 1, np.float32), np.full(DIM, np.nan, np.float32), good * 0):
        with pytest.raises(InvalidSearch, match="the query vector"):
            collection.query(bad, 1)
    for top_k in (0, -1, 10_001):
        with pytest.raises(InvalidSearch, match=f"top_k is {top_k}"):
            collection.query(good, top_k)
    with pytest.raises(InvalidSearch, match="score_threshold"):
        collection.query(good, 1, score_threshold=float("nan"))
    for call in (collection.retrieve, collection.delete):
        with pytest.raises(InvalidSearch, match="not a UUID"):
            call([point_id(1), "../x"])


def test_a_bad_collection_name_is_refused(engine: Engine) -> None:
    for name in ("", ".", "..", "a/b", "../a", "a b", "a\n", "é", "a" * 65, "/a"):
        with pytest.raises(InvalidSearch, match="collection name"):
            engine.store.open(name, CLIP)
        with pytest.raises(InvalidSearch, match="collection name"):
            engine.store.info(name)


def test_two_collections_do_not_mix(engine: Engine) -> None:
    engine.store.open(engine.name, CLIP).upsert(make_points(3))
    other = f"{engine.name}-2"
    assert engine.store.info(other) is None
    if os.environ.get("QDRANT_URL") is None:  # there only one name is cleaned up
        wide = replace(OTHER, dimension=3)
        assert engine.store.open(other, wide).count() == 0
        assert engine.store.open(engine.name, CLIP).count() == 3


def test_writes_and_queries_from_eight_threads_lose_nothing(engine: Engine) -> None:
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        start.wait()
        collection = engine.store.open(engine.name, CLIP)
        points = make_points(40, seed, dao_id=str(seed))
        for n in range(0, 40, 10):
            collection.upsert(points[n : n + 10])
            for point in points[n : n + 10]:
                assert collection.query(point.vector, 1, dao_id=str(seed))[0].id == point.id
        assert collection.delete([points[0].id]) == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))

    assert engine.store.open(engine.name, CLIP).count() == 8 * 39


def test_a_closed_store_says_so_and_closes_again(engine: Engine) -> None:
    collection = engine.store.open(engine.name, CLIP)
    engine.store.close()
    engine.store.close()
    for call in (collection.count, lambda: engine.store.open(engine.name, CLIP)):
        with pytest.raises(StoreUnavailable, match="closed"):
            call()


# The embedded store ------------------------------------------------------------------------


def test_embedded_a_collection_opened_twice_is_one(tmp_path: Path) -> None:
    with closing(EdgeStore(tmp_path)) as store:
        assert store.open("a", CLIP) is store.open("a", CLIP)


def test_embedded_open_store_uses_the_path_without_a_host(tmp_path: Path) -> None:
    with closing(open_store(settings(qdrant_host="", qdrant_path=tmp_path / "x"))) as store:
        store.open("a", CLIP)
    assert (tmp_path / "x" / "a" / "collection.json").exists()


def test_embedded_a_second_process_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    points = make_points(30)
    with closing(EdgeStore(tmp_path)) as store:
        collection = store.open("a", CLIP)
        collection.upsert(points[:10])

        second = run("EdgeStore(Path(sys.argv[1]))", tmp_path)
        assert "StoreLocked" in second.stderr
        assert f"pid {os.getpid()}" in second.stderr
        assert str(tmp_path) in second.stderr
        assert "QDRANT_HOST" in second.stderr
        with pytest.raises(StoreLocked, match="this process"):
            EdgeStore(tmp_path)

        collection.upsert(points[10:])
        assert collection.query(points[20].vector, 1)[0].id == points[20].id
    with closing(EdgeStore(tmp_path)) as store:
        assert store.open("a", CLIP).count() == 30
    assert (tmp_path / ".lock").read_text() == ""


def test_embedded_a_write_survives_a_killed_process(tmp_path: Path) -> None:
    script = """
collection = EdgeStore(Path(sys.argv[1])).open("a", CLIP)
points = make_points(200, dao_id="ours")
collection.upsert(points)
assert collection.delete([p.id for p in points[:50]]) == 50
collection.upsert([replace(points[60], payload={"title": "new"})])
os.kill(os.getpid(), signal.SIGKILL)
"""
    for _ in range(2):  # the second time upon what the first left
        killed = run(script, tmp_path)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    points = make_points(200, dao_id="ours")
    with closing(EdgeStore(tmp_path)) as store:
        collection = store.open("a", CLIP)
        assert collection.count(dao_id="ours") == 149
        found = collection.retrieve([p.id for p in points])
        assert found.pop(points[60].id) == {"title": "new"}
        assert found == {p.id: p.payload for p in points[50:] if p.id != points[60].id}
        assert collection.query(points[100].vector, 1)[0].score == pytest.approx(1, abs=1e-5)


def test_embedded_a_crash_while_creating_leaves_no_half_collection(tmp_path: Path) -> None:
    script = """
def kill(event, args):
    if event == "os.rename":
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
EdgeStore(Path(sys.argv[1])).open("a", CLIP)
"""
    killed = run(script, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [".creating-a"]
    with closing(EdgeStore(tmp_path)) as store:
        assert store.info("a") is None
        store.open("a", OTHER).upsert(make_points(1))
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["a"]


def test_embedded_a_lost_identity_is_refused_and_the_points_kept(tmp_path: Path) -> None:
    with closing(EdgeStore(tmp_path)) as store:
        store.open("a", CLIP).upsert(make_points(5))
    file = tmp_path / "a" / "collection.json"
    written = file.read_text()
    assert json.loads(written)["identity"]["model_name"] == CLIP.model_name

    for broken, error in [("{", StoreUnavailable), ("{}", CollectionMismatch)]:
        file.write_text(broken)
        with closing(EdgeStore(tmp_path)) as store, pytest.raises(error):
            store.open("a", CLIP)
    file.write_text(written)
    with closing(EdgeStore(tmp_path)) as store:
        assert store.open("a", CLIP).count() == 5


def test_embedded_a_damaged_shard_is_a_clear_error(tmp_path: Path) -> None:
    with closing(EdgeStore(tmp_path)) as store:
        store.open("a", CLIP)
    (tmp_path / "a" / "shard" / "edge_config.json").write_text("{")
    with closing(EdgeStore(tmp_path)) as store, pytest.raises(StoreUnavailable, match="a failed"):
        store.open("a", CLIP)


def test_embedded_a_folder_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="QDRANT_PATH"):
        EdgeStore(tmp_path / "file")


def test_embedded_a_disk_nearly_full_is_a_clear_error_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = make_points(3)
    with closing(EdgeStore(tmp_path)) as store:
        collection = store.open("a", CLIP)
        collection.upsert(points)
        monkeypatch.setattr("rag.edge.MIN_FREE_BYTES", 1 << 62)
        for call in (lambda: collection.upsert(points), lambda: store.open("b", CLIP)):
            with pytest.raises(StoreUnavailable, match="MB free"):
                call()
        assert collection.query(points[0].vector, 1)[0].id == points[0].id
        assert collection.delete([points[0].id]) == 1


def test_embedded_the_shard_is_cosine_with_a_tenant_index(tmp_path: Path) -> None:
    with closing(EdgeStore(tmp_path)) as store:
        store.open("a", CLIP)
    folder = tmp_path / "a" / "shard"
    config = json.loads((folder / "edge_config.json").read_text())
    assert config["vectors"][""] == {"size": DIM, "distance": "Cosine"}
    shard = EdgeShard.load(str(folder))
    assert shard.info().payload_schema["dao_id"].params.is_tenant
    shard.close()


def test_embedded_many_writes_are_flushed_so_that_the_log_stays_short(tmp_path: Path) -> None:
    points = make_points(500)
    with closing(EdgeStore(tmp_path)) as store:
        collection = store.open("a", CLIP)

        def count_without_log() -> int:
            copy = tmp_path / uuid4().hex
            shutil.copytree(tmp_path / "a" / "shard", copy)
            shutil.rmtree(copy / "wal")
            shard = EdgeShard.load(str(copy))
            try:
                return shard.count(CountRequest())
            finally:
                shard.close()

        collection.upsert(points)
        assert count_without_log() == 0
        for _ in range(FLUSH_POINTS // len(points)):
            collection.upsert(points)
        assert count_without_log() == 500


def test_embedded_a_fork_is_refused_and_does_its_parent_no_harm(tmp_path: Path) -> None:
    script = """
store = EdgeStore(Path(sys.argv[1]))
collection = store.open("a", CLIP)
collection.upsert(make_points(3))
child = os.fork()
if child == 0:
    refused = 0
    for call in (collection.count, lambda: store.info("a")):
        try:
            call()
        except StoreLocked:
            refused += 1
    store.close()
    os._exit(refused)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
try:
    EdgeStore(Path(sys.argv[1]))
except StoreLocked:
    print("still locked", collection.count())
store.close()
"""
    result = run(script, tmp_path)
    assert result.stdout == "still locked 3\n", result.stderr


# The server --------------------------------------------------------------------------------


def test_server_a_closed_port_is_an_error_at_once() -> None:
    port = closed_port()
    started = time.monotonic()
    with closing(
        open_store(settings(qdrant_host="127.0.0.1", qdrant_port=port, qdrant_grpc_port=port))
    ) as store:
        for call in (lambda: store.open("a", CLIP), lambda: store.info("a")):
            with pytest.raises(StoreUnavailable) as caught:
                call()
            assert f"127.0.0.1:{port}" in str(caught.value)
            assert "QDRANT_HOST" in str(caught.value)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("prefer_grpc", [True, False])
def test_server_one_that_never_answers_is_given_up_on(prefer_grpc: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and says nothing
        port = listener.getsockname()[1]
        client = QdrantClient(
            host="127.0.0.1",
            port=port,
            grpc_port=port,
            prefer_grpc=prefer_grpc,
            timeout=1,
            check_compatibility=False,
        )
        started = time.monotonic()
        with closing(ServerStore(client)) as store, pytest.raises(StoreUnavailable, match="Qdrant"):
            store.info("a")
        assert time.monotonic() - started < 5


def test_server_rest_errors_are_told() -> None:
    port = closed_port()
    client = QdrantClient(host="127.0.0.1", port=port, timeout=1, check_compatibility=False)
    with closing(ServerStore(client)) as store, pytest.raises(StoreUnavailable) as caught:
        store.info("a")
    assert f"127.0.0.1:{port} cannot be reached" in str(caught.value)


def test_server_it_comes_back_after_an_outage(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        loopback.server.stop(None).wait()
        with pytest.raises(StoreUnavailable):
            store.info("a")
        loopback.server = grpc.server(ThreadPoolExecutor(2))
        servicer = LoopbackCollections(loopback)
        collections_rpc.add_CollectionsServicer_to_server(servicer, loopback.server)
        assert loopback.server.add_insecure_port(f"127.0.0.1:{loopback.port}") == loopback.port
        loopback.server.start()
        deadline = time.monotonic() + 5
        while True:
            try:
                assert store.info("a") is None
                break
            except StoreUnavailable:
                assert time.monotonic() < deadline
                time.sleep(0.1)


def test_server_the_index_comes_before_the_points_and_chunks_are_waited_for(
    loopback: Loopback,
) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP).upsert(make_points(600))
        store.open("a", CLIP)

    create, index, *upserts = loopback.writes
    assert create.vectors_config.params.size == DIM
    assert create.vectors_config.params.distance == wire.Distance.Cosine
    assert index.field_name == "dao_id"
    assert index.wait
    assert index.field_index_params.keyword_index_params.is_tenant
    assert [len(upsert.points) for upsert in upserts] == [256, 256, 88]
    assert all(upsert.wait for upsert in upserts)


def test_server_a_collection_that_another_process_just_made_is_opened(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP).upsert(make_points(3))
        loopback.hide_collections = 1
        assert store.open("a", CLIP).count() == 3
        loopback.hide_collections = 1
        with pytest.raises(CollectionMismatch):
            store.open("a", OTHER)


def test_server_a_missing_index_is_made_up_for(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        loopback.indexes.clear()
        store.open("a", CLIP)
        assert "dao_id" in loopback.indexes


def test_server_a_collection_of_unknown_origin_is_refused(loopback: Loopback) -> None:
    vectors = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    loopback.data.create_collection("a", vectors)
    with closing(loopback.connect()) as store:
        for call in (lambda: store.open("a", CLIP), lambda: store.info("a")):
            with pytest.raises(CollectionMismatch, match="IMAGE_SEARCH_COLLECTION"):
                call()


def test_server_one_too_old_to_keep_the_identity_is_refused(loopback: Loopback) -> None:
    loopback.keeps_metadata = False
    with closing(loopback.connect()) as store, pytest.raises(CollectionMismatch, match=r"1\.16"):
        store.open("a", CLIP)


def test_server_a_busy_one_says_when_to_try_again(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        collection = store.open("a", CLIP)
        loopback.busy = True
        with pytest.raises(StoreUnavailable, match="busy: try again in 7 s"):
            collection.upsert(make_points(1))


def test_server_a_deleted_collection_is_a_clear_error(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        collection = store.open("a", CLIP)
        loopback.data.delete_collection("a")
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{loopback.port}"):
            collection.count()


@pytest.mark.parametrize("host", ["qdrant:6333", "ftp://qdrant", "http://", "a/b"])
def test_server_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(StoreUnavailable, match="QDRANT_HOST"):
        open_store(settings(qdrant_host=host))


@pytest.mark.parametrize(
    ("host", "key", "encrypted"),
    [
        ("qdrant", "", False),
        ("qdrant", "k", True),
        ("http://qdrant", "k", False),
        ("https://qdrant/", "", True),
    ],
)
def test_server_the_scheme_decides_over_encryption(host: str, key: str, encrypted: bool) -> None:
    store = ServerStore.connect(settings(qdrant_host=host, qdrant_api_key=key))
    with closing(store):
        assert store._client.init_options["https"] is encrypted
        assert store._client.init_options["host"] == "qdrant"
        assert (store._client.init_options["headers"] or {}).get("api-key", "") == key
