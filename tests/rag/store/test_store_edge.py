"""The embedded store: its folders and its errors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from qdrant_edge import EdgeShard

from bento.contract.errors import CollectionMismatch, StoreFull, StoreUnavailable
from rag.store.edge.collection import Limits
from rag.store.edge.folders import FORMAT
from rag.store.edge.store import EdgeStore
from rag.store.opening import open_store
from tests.support.rag.engines import CLIP, DIM, OTHER, make_points, settings

SHARD = Path("a") / CLIP.generation / "shard"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_opening_a_collection_twice_returns_the_same_object(folder: Path) -> None:
    with closing(EdgeStore(folder)) as store:
        assert store.open("a", CLIP) is store.open("a", CLIP) is store.published("a")


def test_open_store_uses_the_path_if_there_is_no_host(folder: Path) -> None:
    with closing(open_store(settings(qdrant_host="", qdrant_path=folder / "x"))) as store:
        store.open("a", CLIP)
    assert (folder / "x" / SHARD).exists()


def test_a_collection_is_a_folder_of_versions_and_a_link(folder: Path) -> None:
    with closing(EdgeStore(folder)) as store:
        store.open("a", CLIP)
        store.open("a", OTHER, staged=True)
        assert names(folder / "a") == {CLIP.generation, OTHER.generation, "published"}
        assert os.readlink(folder / "a" / "published") == CLIP.generation
        store.publish("a", OTHER)
        assert os.readlink(folder / "a" / "published") == OTHER.generation
        store.drop("a", CLIP.generation)
        assert names(folder / "a") == {OTHER.generation, "published"}


def test_leftovers_of_a_dropped_version_are_deleted(folder: Path) -> None:
    with closing(EdgeStore(folder)) as store:
        store.open("a", CLIP)
        store.open("a", OTHER, staged=True)
    os.rename(folder / "a" / OTHER.generation, folder / "a" / f".dropped-{OTHER.generation}")
    with closing(EdgeStore(folder)) as store:
        assert names(folder / "a") == {CLIP.generation, "published"}
        assert [c.identity for c in store.generations("a")] == [CLIP]


def test_a_version_of_a_newer_format_is_rejected_and_unchanged(folder: Path) -> None:
    with closing(EdgeStore(folder)) as store:
        store.open("a", CLIP).upsert(make_points(3))
    file = folder / "a" / CLIP.generation / "collection.json"
    written = json.loads(file.read_text())
    assert written["format"] == FORMAT == 2
    file.write_text(json.dumps({"format": FORMAT + 1, "vectors": "elsewhere"}))
    before = {p: p.stat().st_mtime_ns for p in (folder / "a").rglob("*")}

    with closing(EdgeStore(folder)) as store:
        calls: list[Callable[[], object]] = [
            lambda: store.open("a", CLIP),
            lambda: store.open("a", OTHER),
            lambda: store.open("a", CLIP, staged=True),
            lambda: store.published("a"),
            lambda: store.generations("a"),
            lambda: store.publish("a", CLIP),
        ]
        for call in calls:
            with pytest.raises(StoreUnavailable, match="newer version of vision-encoder"):
                call()
    assert {p: p.stat().st_mtime_ns for p in (folder / "a").rglob("*")} == before


def test_a_version_without_its_identity_is_rejected_and_kept(folder: Path) -> None:
    with closing(EdgeStore(folder)) as store:
        store.open("a", CLIP).upsert(make_points(5))
    file = folder / "a" / CLIP.generation / "collection.json"
    written = file.read_text()
    assert json.loads(written)["identity"]["model_name"] == CLIP.model_name

    for broken, error in [("{", StoreUnavailable), ("{}", CollectionMismatch)]:
        file.write_text(broken)
        with closing(EdgeStore(folder)) as store, pytest.raises(error):
            store.open("a", CLIP)
    file.write_text(written)
    with closing(EdgeStore(folder)) as store:
        assert store.open("a", CLIP).count() == 5


def test_a_damaged_shard_makes_the_store_unavailable(folder: Path) -> None:
    with closing(EdgeStore(folder)) as store:
        store.open("a", CLIP)
    (folder / SHARD / "edge_config.json").write_text("{")
    with (
        closing(EdgeStore(folder)) as store,
        pytest.raises(StoreUnavailable, match="failed: "),
    ):
        store.open("a", CLIP)


def test_a_deleted_published_version_can_be_replaced(folder: Path) -> None:
    with closing(EdgeStore(folder)) as store:
        store.open("a", CLIP).upsert(make_points(5))
    shutil.rmtree(folder / "a" / CLIP.generation)
    with closing(EdgeStore(folder)) as store:
        assert store.published("a") is None
        assert store.open("a", OTHER).count() == 0


def test_an_unusable_folder_makes_the_store_unavailable(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="QDRANT_PATH"):
        EdgeStore(folder / "file")


def test_an_almost_full_disk_stops_writes_but_not_reads(folder: Path) -> None:
    points = make_points(3)
    limits = Limits()
    with closing(EdgeStore(folder, limits)) as store:
        collection = store.open("a", CLIP)
        collection.upsert(points)
        limits.min_free_bytes = 1 << 62
        calls: list[Callable[[], object]] = [
            lambda: collection.upsert(points),
            lambda: collection.overwrite_payloads({points[0].id: {}}),
            lambda: store.open("b", CLIP),
        ]
        for call in calls:
            with pytest.raises(StoreFull, match="MB free, but the store needs"):
                call()
        assert collection.query(points[0].vector, 1)[0].id == points[0].id
        assert collection.delete([points[0].id]) == 1


def test_the_shard_has_cosine_distance_and_keyword_indexes(folder: Path) -> None:
    with closing(EdgeStore(folder)) as store:
        store.open("a", CLIP)
    config = json.loads((folder / SHARD / "edge_config.json").read_text())
    vectors = config["vectors"][""]
    assert vectors.pop("quantization_config") == {"turbo": {"bits": "bits4"}}
    assert vectors == {"size": DIM, "distance": "Cosine"}
    shard = EdgeShard.load(str(folder / SHARD))
    schema = shard.info().payload_schema
    shard.close()
    assert {field: getattr(index.params, "is_tenant", None) for field, index in schema.items()} == {
        "dao_id": True,
        "tags": False,
        "category": False,
    }
