"""The store on a server: what it sends, and how it creates, over the stand-in `Loopback`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from threading import Barrier
from typing import Any

import grpc
import pytest
from qdrant_client import grpc as wire
from qdrant_client import models
from rag.errors import CollectionMismatch, StoreUnavailable

from bento.contract.filters import tenant
from rag.store.interface import open_store
from rag.store.server.store import ServerStore, like
from tests.support.rag.engines import CLIP, DIM, OTHER, make_points, settings
from tests.support.rag.loopback import Fault, Loopback

THERE = f"a--{CLIP.generation}"


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    loopback = Loopback()
    yield loopback
    loopback.stop()


def aliases(loopback: Loopback) -> dict[str, str]:
    return {a.alias_name: a.collection_name for a in loopback.data.get_aliases().aliases}


def made_by_hand(loopback: Loopback, size: int = DIM, distance: str = "Cosine") -> None:
    vectors = models.VectorParams(size=size, distance=models.Distance(distance), on_disk=True)
    loopback.data.create_collection("a", vectors)


def test_a_generation_and_its_indexes_come_first_and_the_alias_last(loopback: Loopback) -> None:
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


def test_opening_what_is_there_takes_one_call(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        store.open("a", OTHER, staged=True)
        for identity, staged in ((CLIP, False), (OTHER, True)):
            loopback.calls.clear()
            store.open("a", identity, staged=staged)
            assert loopback.calls == ["Get"]


def test_publishing_is_one_call_that_replaces_the_alias(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        store.open("a", OTHER, staged=True)
        loopback.calls.clear()
        store.publish("a", OTHER)
    assert loopback.calls == ["Get", "Get", "UpdateAliases"]
    assert aliases(loopback) == {"a": f"a--{OTHER.generation}"}


def test_all_calls_name_the_generation_and_not_the_alias(loopback: Loopback) -> None:
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


def test_points_go_256_a_call_and_are_waited_for(loopback: Loopback) -> None:
    points = make_points(600)
    with closing(loopback.connect()) as store:
        collection = store.open("a", CLIP)
        loopback.writes.clear()
        collection.upsert(points)
        collection.overwrite_payloads({p.id: {"n": 0} for p in points})
        collection.delete([p.id for p in points])

    upserts, overwrites, deletes = (loopback.writes[n : n + 3] for n in (0, 3, 6))
    assert [len(upsert.points) for upsert in upserts] == [256, 256, 88]
    assert [len(batch.operations) for batch in overwrites] == [256, 256, 88]
    assert [len(delete.points.points.ids) for delete in deletes] == [256, 256, 88]
    assert all(write.wait for write in loopback.writes)


def test_a_query_takes_one_call_unless_scores_at_an_end_of_the_page_are_equal(
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


def test_processes_that_create_at_once_both_end_up_with_one_collection(loopback: Loopback) -> None:
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
def test_a_collection_that_another_process_just_made_is_opened(
    loopback: Loopback, missing: int
) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP).upsert(make_points(3))
        loopback.hidden = ["a"] * missing
        assert store.open("a", CLIP).count() == 3
        assert loopback.hidden == []


def test_a_collection_that_another_process_published_meanwhile_stays_so(
    loopback: Loopback,
) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        loopback.hidden = ["a"]
        with pytest.raises(CollectionMismatch):
            store.open("a", OTHER)
    assert aliases(loopback) == {"a": THERE}


@pytest.mark.parametrize("method", ["Create", "CreateFieldIndex", "UpdateAliases"])
def test_a_crash_while_creating_is_made_up_for_by_the_next_open(
    loopback: Loopback, method: str
) -> None:
    loopback.faults.append(Fault(method, grpc.StatusCode.INTERNAL))
    with closing(loopback.connect()) as store:
        with pytest.raises(StoreUnavailable, match="INTERNAL"):
            store.open("a", CLIP)
        assert aliases(loopback) == {}
        store.open("a", CLIP).upsert(make_points(3))
    assert aliases(loopback) == {"a": THERE}
    assert loopback.indexes.keys() == {(THERE, field) for field in ("dao_id", "tags", "category")}


def test_missing_indexes_are_made_up_for_without_waiting(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        del loopback.indexes[THERE, "tags"]
        loopback.writes.clear()
        store.open("a", CLIP)
        store.open("a", CLIP)
    assert [(w.field_name, w.wait) for w in loopback.writes] == [("tags", False)]


def test_a_collection_of_unknown_origin_is_refused(loopback: Loopback) -> None:
    made_by_hand(loopback)
    loopback.data.upsert("a", [models.PointStruct(id=1, vector=[1.0] * DIM, payload={})])
    with closing(loopback.connect()) as store:
        for call in (lambda: store.open("a", CLIP), lambda: store.published("a")):
            with pytest.raises(CollectionMismatch, match="does not say which model"):
                call()


def test_an_empty_collection_made_by_hand_is_the_template_of_the_first(loopback: Loopback) -> None:
    made_by_hand(loopback)
    with closing(loopback.connect()) as store:
        with pytest.raises(CollectionMismatch):  # only who creates may put another in its place
            store.open("a", CLIP, create=False)
        collection = store.open("a", CLIP)
        points = make_points(3)
        collection.upsert(points)
        assert store.open("a", CLIP).count() == 3
    assert aliases(loopback) == {"a": THERE}
    assert [c.name for c in loopback.data.get_collections().collections] == [THERE]
    create = next(w for w in loopback.writes if isinstance(w, wire.CreateCollection))
    assert create.vectors_config.params.on_disk is True


def test_its_shards_and_replicas_are_kept(loopback: Loopback) -> None:
    made_by_hand(loopback)
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
def test_one_made_for_other_vectors_is_left_alone(
    loopback: Loopback, size: int, distance: str
) -> None:
    made_by_hand(loopback, size, distance)
    said = f"one vector of {DIM} dimensions by Cosine"
    with closing(loopback.connect()) as store, pytest.raises(CollectionMismatch, match=said):
        store.open("a", CLIP)
    assert loopback.data.collection_exists("a")
    assert aliases(loopback) == {}


def test_a_crash_while_taking_over_is_made_up_for_by_the_next_open(loopback: Loopback) -> None:
    made_by_hand(loopback)
    for method in ("Delete", "UpdateAliases"):
        loopback.faults.append(Fault(method, grpc.StatusCode.INTERNAL))
        with closing(loopback.connect()) as store, pytest.raises(StoreUnavailable):
            store.open("a", CLIP)
        assert loopback.faults == []
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
    assert aliases(loopback) == {"a": THERE}


def test_publishing_takes_the_place_of_an_empty_one_too(loopback: Loopback) -> None:
    made_by_hand(loopback)
    with closing(loopback.connect()) as store:
        store.open("a", CLIP, staged=True)
        store.publish("a", CLIP)
    assert aliases(loopback) == {"a": THERE}


def test_another_process_that_took_over_first_is_not_pushed_aside(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by_hand(loopback)
    with closing(loopback.connect()) as late, closing(loopback.connect()) as quick:
        assert isinstance(late, ServerStore)
        create = late._create

        def meanwhile(*arguments: Any) -> Any:
            quick.open("a", OTHER).upsert(make_points(3))
            return create(*arguments)

        monkeypatch.setattr(late, "_create", meanwhile)
        with pytest.raises(CollectionMismatch, match="holds vectors of"):
            late.open("a", CLIP)
        assert quick.open("a", OTHER).count() == 3
    assert aliases(loopback) == {"a": f"a--{OTHER.generation}"}


def test_points_that_come_while_taking_over_are_kept(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by_hand(loopback)
    with closing(loopback.connect()) as store:
        assert isinstance(store, ServerStore)
        create = store._create

        def meanwhile(*arguments: Any) -> Any:
            point = models.PointStruct(id=1, vector=[1.0] * DIM, payload={})
            loopback.data.upsert("a", [point])
            return create(*arguments)

        monkeypatch.setattr(store, "_create", meanwhile)
        with pytest.raises(CollectionMismatch, match="does not say which model"):
            store.open("a", CLIP)
    assert loopback.data.count("a").count == 1


def test_collections_with_similar_names_are_no_generations(loopback: Loopback) -> None:
    vectors = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    for name in ("a--backup", f"{THERE}-2", f"b--{CLIP.generation}", f"x{THERE}"):
        loopback.data.create_collection(name, vectors)
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        assert [c.identity for c in store.generations("a")] == [CLIP]
        assert store.drop("a", "backup") is False
    assert loopback.data.collection_exists("a--backup")


def test_a_server_too_old_to_keep_the_identity_is_refused(loopback: Loopback) -> None:
    loopback.keeps_metadata = False
    with closing(loopback.connect()) as store, pytest.raises(CollectionMismatch, match=r"1\.16"):
        store.open("a", CLIP)
    assert aliases(loopback) == {}


def test_an_identity_that_was_tampered_with_is_refused(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        other = {"model_identity": {"pretrained": "laion2b"}}
        loopback.data.update_collection(THERE, metadata=other)
        with pytest.raises(CollectionMismatch):
            store.open("a", CLIP)
        with pytest.raises(CollectionMismatch):
            store.publish("a", CLIP)


def test_a_collection_of_another_dimension_is_a_clear_error_at_once(loopback: Loopback) -> None:
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
def test_a_host_that_is_none_is_refused(host: str) -> None:
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
def test_the_scheme_decides_over_encryption(host: str, key: str, encrypted: bool) -> None:
    store = ServerStore.connect(settings(qdrant_host=host, qdrant_api_key=key))
    with closing(store):
        options = store._calls._client.init_options
        assert options["https"] is encrypted
        assert options["host"] == "qdrant"
        assert (options["headers"] or {}).get("api-key", "") == key
