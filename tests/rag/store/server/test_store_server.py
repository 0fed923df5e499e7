"""The store on a server: its calls, and how it creates versions, against the fake `Loopback`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from threading import Barrier

import grpc  # type: ignore[import-untyped]
import pytest
from qdrant_client import grpc as wire
from qdrant_client import models

from bento.contract.errors import CollectionMismatch, StoreUnavailable
from bento.contract.filters import tenant
from rag.store.opening import open_store
from rag.store.server.store import like, make_client
from tests.support.rag.engines import CLIP, DIM, OTHER, make_points, settings
from tests.support.rag.loopback import Fault, Loopback

pytestmark = pytest.mark.service

THERE = f"a--{CLIP.generation}"


def aliases(loopback: Loopback) -> dict[str, str]:
    return {a.alias_name: a.collection_name for a in loopback.data.get_aliases().aliases}


def create_by_hand(loopback: Loopback, size: int = DIM, distance: str = "Cosine") -> None:
    vectors = models.VectorParams(size=size, distance=models.Distance(distance), on_disk=True)
    loopback.data.create_collection("a", vectors)


def test_the_alias_is_created_after_the_version_and_its_indexes(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)

    create, *indexes, publish = loopback.writes
    assert create.collection_name == THERE
    assert create.vectors_config.params.size == DIM
    assert create.vectors_config.params.distance == wire.Distance.Cosine
    assert [index.field_name for index in indexes] == ["dao_id", "tags", "category"]
    assert all(index.collection_name == THERE and index.wait for index in indexes)
    keywords = [index.field_index_params.keyword_index_params for index in indexes]
    assert [keyword.is_tenant for keyword in keywords] == [True, False, False]
    assert [action.WhichOneof("action") for action in publish.actions] == [
        "delete_alias",
        "create_alias",
    ]
    assert aliases(loopback) == {"a": THERE}


def test_opening_an_existing_version_takes_one_call(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        store.open("a", OTHER, staged=True)
        for identity, staged in ((CLIP, False), (OTHER, True)):
            loopback.calls.clear()
            store.open("a", identity, staged=staged)
            assert loopback.calls == ["Get"]


def test_publishing_replaces_the_alias_with_one_call(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        store.open("a", OTHER, staged=True)
        loopback.calls.clear()
        store.publish("a", OTHER)
    assert loopback.calls == ["Get", "Get", "UpdateAliases"]
    assert aliases(loopback) == {"a": f"a--{OTHER.generation}"}


def test_all_calls_name_the_version_rather_than_the_alias(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        collection = store.open("a", CLIP)
        loopback.data.update_collection_aliases(
            [models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name="a"))]
        )
        point = make_points(1, dao_id="ours")[0]
        collection.upsert([point])
        collection.overwrite_payloads({point.id: {"dao_id": "ours"}})
        assert collection.retrieve([point.id]).keys() == {point.id}
        assert len(collection.query(point.vector, 1, filter=tenant("ours"))) == 1
        assert len(collection.scroll()[0]) == collection.count() == 1
        assert collection.delete([point.id]) == 1


def test_writes_send_256_points_per_call_and_wait(loopback: Loopback) -> None:
    points = make_points(260)
    with closing(loopback.connect()) as store:
        collection = store.open("a", CLIP)
        loopback.writes.clear()
        collection.upsert(points)
        collection.overwrite_payloads({p.id: {"n": 0} for p in points})
        collection.delete([p.id for p in points])

    upserts, overwrites, deletes = (loopback.writes[n : n + 2] for n in (0, 2, 4))
    assert [len(upsert.points) for upsert in upserts] == [256, 4]
    assert [len(batch.operations) for batch in overwrites] == [256, 4]
    assert [len(delete.points.points.ids) for delete in deletes] == [256, 4]
    assert all(write.wait for write in loopback.writes)


def test_a_query_takes_one_call_unless_a_page_ends_between_equal_scores(
    loopback: Loopback,
) -> None:
    one, two, *others = make_points(30)
    with closing(loopback.connect()) as store:
        collection = store.open("a", CLIP)
        collection.upsert([one, replace(two, vector=one.vector), *others])
        loopback.calls.clear()
        collection.query(one.vector, 2)
        collection.query(one.vector, 5, offset=2)
        assert loopback.calls == ["Query", "Query"]
        collection.query(one.vector, 1)
        assert loopback.calls[2:] == ["Query", "Query", "Get"]


def test_processes_that_create_a_collection_at_once_share_it(loopback: Loopback) -> None:
    start = Barrier(4)

    def work(seed: int) -> None:
        with closing(loopback.connect()) as store:
            start.wait()
            store.open("a", CLIP).upsert(make_points(3, seed))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert aliases(loopback) == {"a": THERE}
    assert loopback.data.count("a").count == 12


@pytest.mark.parametrize("missing", [1, 2])
def test_a_collection_that_another_process_just_created_is_opened(
    loopback: Loopback, missing: int
) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP).upsert(make_points(3))
        loopback.hidden = ["a"] * missing
        assert store.open("a", CLIP).count() == 3
        assert loopback.hidden == []


def test_a_version_that_another_process_published_meanwhile_stays_published(
    loopback: Loopback,
) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        loopback.hidden = ["a"]
        with pytest.raises(CollectionMismatch):
            store.open("a", OTHER)
    assert aliases(loopback) == {"a": THERE}


@pytest.mark.parametrize("method", ["Create", "CreateFieldIndex", "UpdateAliases"])
def test_the_next_open_completes_an_interrupted_creation(loopback: Loopback, method: str) -> None:
    loopback.faults.append(Fault(method, grpc.StatusCode.INTERNAL))
    with closing(loopback.connect()) as store:
        with pytest.raises(StoreUnavailable, match="INTERNAL"):
            store.open("a", CLIP)
        assert aliases(loopback) == {}
        store.open("a", CLIP).upsert(make_points(3))
    assert aliases(loopback) == {"a": THERE}
    assert loopback.indexes.keys() == {(THERE, field) for field in ("dao_id", "tags", "category")}


def test_missing_indexes_are_created_without_waiting(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        del loopback.indexes[THERE, "tags"]
        loopback.writes.clear()
        store.open("a", CLIP)
        store.open("a", CLIP)
    assert [(w.field_name, w.wait) for w in loopback.writes] == [("tags", False)]


def test_a_collection_without_an_identity_is_rejected(loopback: Loopback) -> None:
    create_by_hand(loopback)
    loopback.data.upsert("a", [models.PointStruct(id=1, vector=[1.0] * DIM, payload={})])
    with closing(loopback.connect()) as store:
        calls: list[Callable[[], object]] = [
            lambda: store.open("a", CLIP),
            lambda: store.published("a"),
        ]
        for call in calls:
            with pytest.raises(CollectionMismatch, match="does not record which model"):
                call()


def test_an_empty_collection_created_by_hand_is_the_template_of_the_first_version(
    loopback: Loopback,
) -> None:
    create_by_hand(loopback)
    with closing(loopback.connect()) as store:
        with pytest.raises(CollectionMismatch):  # only `create` replaces it
            store.open("a", CLIP, create=False)
        collection = store.open("a", CLIP)
        points = make_points(3)
        collection.upsert(points)
        assert store.open("a", CLIP).count() == 3
    assert aliases(loopback) == {"a": THERE}
    assert [c.name for c in loopback.data.get_collections().collections] == [THERE]
    create = next(w for w in loopback.writes if isinstance(w, wire.CreateCollection))
    assert create.vectors_config.params.on_disk is True


def test_the_version_copies_shards_and_replicas_of_its_template(loopback: Loopback) -> None:
    create_by_hand(loopback)
    info = loopback.data.get_collection("a")
    info.config.params.shard_number = 3
    info.config.params.replication_factor = 2
    info.config.params.write_consistency_factor = 1
    info.config.hnsw_config.m = 32
    parameters = like("a", CLIP, info)
    assert parameters["shard_number"] == 3
    assert parameters["replication_factor"] == 2
    assert parameters["write_consistency_factor"] == 1
    assert parameters["hnsw_config"].m == 32


@pytest.mark.parametrize(("size", "distance"), [(DIM + 1, "Cosine"), (DIM, "Dot")])
def test_an_empty_collection_for_other_vectors_is_rejected_and_kept(
    loopback: Loopback, size: int, distance: str
) -> None:
    create_by_hand(loopback, size, distance)
    said = f"one vector of {DIM} dimensions with Cosine distance"
    with closing(loopback.connect()) as store, pytest.raises(CollectionMismatch, match=said):
        store.open("a", CLIP)
    assert loopback.data.collection_exists("a")
    assert aliases(loopback) == {}


def test_the_next_open_completes_an_interrupted_replacement_of_the_template(
    loopback: Loopback,
) -> None:
    create_by_hand(loopback)
    for method in ("Delete", "UpdateAliases"):
        loopback.faults.append(Fault(method, grpc.StatusCode.INTERNAL))
        with closing(loopback.connect()) as store, pytest.raises(StoreUnavailable):
            store.open("a", CLIP)
        assert loopback.faults == []
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
    assert aliases(loopback) == {"a": THERE}


def test_publishing_replaces_an_empty_collection(loopback: Loopback) -> None:
    create_by_hand(loopback)
    with closing(loopback.connect()) as store:
        store.open("a", CLIP, staged=True)
        store.publish("a", CLIP)
    assert aliases(loopback) == {"a": THERE}


def test_a_process_that_replaced_the_template_first_wins(loopback: Loopback) -> None:
    create_by_hand(loopback)
    with closing(loopback.connect()) as late, closing(loopback.connect()) as quick:
        loopback.before["Create"] = lambda: quick.open("a", OTHER).upsert(make_points(3))
        with pytest.raises(CollectionMismatch, match="holds vectors of"):
            late.open("a", CLIP)
        assert quick.open("a", OTHER).count() == 3
    assert aliases(loopback) == {"a": f"a--{OTHER.generation}"}


def test_points_written_while_the_template_is_replaced_are_kept(loopback: Loopback) -> None:
    create_by_hand(loopback)
    point = models.PointStruct(id=1, vector=[1.0] * DIM, payload={})
    loopback.before["Create"] = lambda: loopback.data.upsert("a", [point])
    with closing(loopback.connect()) as store, pytest.raises(CollectionMismatch):
        store.open("a", CLIP)
    assert loopback.data.count("a").count == 1


def test_collections_with_similar_names_are_not_versions(loopback: Loopback) -> None:
    vectors = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    for name in ("a--backup", f"{THERE}-2", f"b--{CLIP.generation}", f"x{THERE}"):
        loopback.data.create_collection(name, vectors)
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        assert [c.identity for c in store.generations("a")] == [CLIP]
        assert store.drop("a", "backup") is False
    assert loopback.data.collection_exists("a--backup")


def test_a_server_too_old_to_store_the_identity_is_rejected(loopback: Loopback) -> None:
    loopback.keeps_metadata = False
    with closing(loopback.connect()) as store, pytest.raises(CollectionMismatch, match=r"1\.16"):
        store.open("a", CLIP)
    assert aliases(loopback) == {}


def test_a_damaged_identity_is_rejected(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        other = {"model_identity": {"pretrained": "laion2b"}}
        loopback.data.update_collection(THERE, metadata=other)
        with pytest.raises(CollectionMismatch):
            store.open("a", CLIP)
        with pytest.raises(CollectionMismatch):
            store.publish("a", CLIP)


def test_a_rejected_write_is_not_retried(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        collection = store.open("a", CLIP)
        loopback.data.delete_collection(THERE)
        vectors = models.VectorParams(size=DIM + 1, distance=models.Distance.COSINE)
        loopback.data.create_collection(THERE, vectors)
        loopback.calls.clear()
        with pytest.raises(StoreUnavailable, match="INVALID_ARGUMENT"):
            collection.upsert(make_points(3))
        assert loopback.calls == ["Upsert"]
        assert collection.count() == 0


@pytest.mark.parametrize("host", ["qdrant:6333", "ftp://qdrant", "http://", "a/b"])
def test_a_bad_host_is_rejected(host: str) -> None:
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
def test_the_scheme_decides_whether_the_connection_is_encrypted(
    host: str, key: str, encrypted: bool
) -> None:
    with closing(make_client(settings(qdrant_host=host, qdrant_api_key=key))) as client:
        options = client.init_options
        assert options["https"] is encrypted
        assert options["host"] == "qdrant"
        assert (options["headers"] or {}).get("api-key", "") == key
