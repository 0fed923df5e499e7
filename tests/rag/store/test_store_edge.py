"""The embedded store: its folders, its lock, what a killed process leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from qdrant_edge import CountRequest, EdgeShard
from rag.errors import CollectionMismatch, StoreLocked, StoreUnavailable

from bento.contract.filters import tenant
from rag.store.edge.collection import CANDIDATES, FLUSH_POINTS
from rag.store.edge.folders import FORMAT
from rag.store.edge.store import EdgeStore
from rag.store.interface import Point, open_store
from tests.support.rag.engines import CLIP, DIM, OTHER, cosines, make_points, run, settings

SHARD = Path("a") / CLIP.generation / "shard"


def folders(path: Path) -> set[str]:
    return {p.name for p in path.iterdir()}


def count_without_log(path: Path) -> int:
    """Return how many points would be left if the machine lost power and the log with it."""
    copy = path / uuid4().hex
    shutil.copytree(path / SHARD, copy)
    shutil.rmtree(copy / "wal")
    shard = EdgeShard.load(str(copy))
    try:
        return int(shard.count(CountRequest()))
    finally:
        shard.close()
        shutil.rmtree(copy)


def test_a_collection_opened_twice_is_one(tmp_path: Path) -> None:
    with closing(EdgeStore(tmp_path)) as store:
        assert store.open("a", CLIP) is store.open("a", CLIP) is store.published("a")


def test_open_store_uses_the_path_without_a_host(tmp_path: Path) -> None:
    with closing(open_store(settings(qdrant_host="", qdrant_path=tmp_path / "x"))) as store:
        store.open("a", CLIP)
    assert (tmp_path / "x" / SHARD).exists()


def test_a_collection_is_a_folder_of_generations_and_a_link(tmp_path: Path) -> None:
    with closing(EdgeStore(tmp_path)) as store:
        store.open("a", CLIP)
        store.open("a", OTHER, staged=True)
        assert folders(tmp_path / "a") == {CLIP.generation, OTHER.generation, "published"}
        assert os.readlink(tmp_path / "a" / "published") == CLIP.generation
        store.publish("a", OTHER)
        assert os.readlink(tmp_path / "a" / "published") == OTHER.generation
        store.drop("a", CLIP.generation)
        assert folders(tmp_path / "a") == {OTHER.generation, "published"}


def test_a_second_process_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
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


def test_a_write_survives_a_killed_process(tmp_path: Path) -> None:
    code = """
collection = EdgeStore(Path(sys.argv[1])).open("a", CLIP)
points = make_points(200, dao_id="ours")
collection.upsert(points)
assert collection.delete([p.id for p in points[:50]]) == 50
collection.upsert([replace(points[60], payload={"title": "new"})])
assert collection.overwrite_payloads({points[61].id: {"title": "newer"}}) == 1
os.kill(os.getpid(), signal.SIGKILL)
"""
    for _ in range(2):  # the second time upon what the first left
        killed = run(code, tmp_path)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    points = make_points(200, dao_id="ours")
    with closing(EdgeStore(tmp_path)) as store:
        collection = store.open("a", CLIP)
        assert collection.count(filter=tenant("ours")) == 148
        found = collection.retrieve([p.id for p in points])
        assert found.pop(points[60].id).payload == {"title": "new"}
        assert found.pop(points[61].id).payload == {"title": "newer"}
        kept = [*points[50:60], *points[62:]]
        assert {id: r.payload for id, r in found.items()} == {p.id: p.payload for p in kept}
        for point in (points[61], points[100]):
            assert collection.query(point.vector, 1)[0].id == point.id


def killed_at(rename: int, path: Path) -> None:
    """Make a process that opens a collection die just before one of its renamings."""
    code = f"""
left = {rename}
def kill(event, args):
    global left
    if event == "os.rename":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
EdgeStore(Path(sys.argv[1])).open("a", CLIP)
"""
    killed = run(code, path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def test_a_crash_while_creating_leaves_no_half_generation(tmp_path: Path) -> None:
    killed_at(1, tmp_path)
    assert folders(tmp_path / "a") == {f".creating-{CLIP.generation}"}
    with closing(EdgeStore(tmp_path)) as store:
        assert folders(tmp_path / "a") == set()
        assert store.published("a") is None
        assert store.generations("a") == []
        store.open("a", OTHER).upsert(make_points(1))
    assert folders(tmp_path / "a") == {OTHER.generation, "published"}


def test_a_crash_between_creating_and_publishing_is_made_up_for(tmp_path: Path) -> None:
    killed_at(2, tmp_path)
    assert folders(tmp_path / "a") == {CLIP.generation, ".publishing"}
    with closing(EdgeStore(tmp_path)) as store:
        assert store.published("a") is None
        assert store.open("a", CLIP).count() == 0
        assert store.published("a") is not None


def test_what_a_crash_left_of_a_dropped_generation_is_cleaned_up(tmp_path: Path) -> None:
    with closing(EdgeStore(tmp_path)) as store:
        store.open("a", CLIP)
        store.open("a", OTHER, staged=True)
    os.rename(tmp_path / "a" / OTHER.generation, tmp_path / "a" / f".dropped-{OTHER.generation}")
    with closing(EdgeStore(tmp_path)) as store:
        assert folders(tmp_path / "a") == {CLIP.generation, "published"}
        assert [c.identity for c in store.generations("a")] == [CLIP]


def test_a_generation_of_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    with closing(EdgeStore(tmp_path)) as store:
        store.open("a", CLIP).upsert(make_points(3))
    file = tmp_path / "a" / CLIP.generation / "collection.json"
    written = json.loads(file.read_text())
    assert written["format"] == FORMAT == 2
    file.write_text(json.dumps({"format": FORMAT + 1, "vectors": "elsewhere"}))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}

    with closing(EdgeStore(tmp_path)) as store:
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
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")} == before


def test_a_lost_identity_is_refused_and_the_points_kept(tmp_path: Path) -> None:
    with closing(EdgeStore(tmp_path)) as store:
        store.open("a", CLIP).upsert(make_points(5))
    file = tmp_path / "a" / CLIP.generation / "collection.json"
    written = file.read_text()
    assert json.loads(written)["identity"]["model_name"] == CLIP.model_name

    for broken, error in [("{", StoreUnavailable), ("{}", CollectionMismatch)]:
        file.write_text(broken)
        with closing(EdgeStore(tmp_path)) as store, pytest.raises(error):
            store.open("a", CLIP)
    file.write_text(written)
    with closing(EdgeStore(tmp_path)) as store:
        assert store.open("a", CLIP).count() == 5


def test_a_damaged_shard_is_a_clear_error(tmp_path: Path) -> None:
    with closing(EdgeStore(tmp_path)) as store:
        store.open("a", CLIP)
    (tmp_path / SHARD / "edge_config.json").write_text("{")
    with closing(EdgeStore(tmp_path)) as store, pytest.raises(StoreUnavailable, match="failed"):
        store.open("a", CLIP)


def test_a_published_generation_that_somebody_deleted_is_made_anew(tmp_path: Path) -> None:
    with closing(EdgeStore(tmp_path)) as store:
        store.open("a", CLIP).upsert(make_points(5))
    shutil.rmtree(tmp_path / "a" / CLIP.generation)
    with closing(EdgeStore(tmp_path)) as store:
        assert store.published("a") is None
        assert store.open("a", OTHER).count() == 0


def test_a_folder_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="QDRANT_PATH"):
        EdgeStore(tmp_path / "file")


def test_a_disk_nearly_full_is_a_clear_error_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = make_points(3)
    with closing(EdgeStore(tmp_path)) as store:
        collection = store.open("a", CLIP)
        collection.upsert(points)
        monkeypatch.setattr("rag.store.edge.folders.MIN_FREE_BYTES", 1 << 62)
        calls: list[Callable[[], object]] = [
            lambda: collection.upsert(points),
            lambda: collection.overwrite_payloads({points[0].id: {}}),
            lambda: store.open("b", CLIP),
        ]
        for call in calls:
            with pytest.raises(StoreUnavailable, match="MB free"):
                call()
        assert collection.query(points[0].vector, 1)[0].id == points[0].id
        assert collection.delete([points[0].id]) == 1


def test_the_shard_is_cosine_with_keyword_indexes(tmp_path: Path) -> None:
    with closing(EdgeStore(tmp_path)) as store:
        store.open("a", CLIP)
    config = json.loads((tmp_path / SHARD / "edge_config.json").read_text())
    vectors = config["vectors"][""]
    assert vectors.pop("quantization_config") == {"turbo": {"bits": "bits4"}}
    assert vectors == {"size": DIM, "distance": "Cosine"}
    shard = EdgeShard.load(str(tmp_path / SHARD))
    held = {field: schema.params.is_tenant for field, schema in shard.info().payload_schema.items()}
    shard.close()
    assert held == {"dao_id": True, "tags": False, "category": False}


MANY = 5 * CANDIDATES  # of which a search scores the better ones again


def check_exact(store: EdgeStore, points: list[Point]) -> None:
    """Hold searches among all points of a store against their true cosines."""
    collection = store.open("a", CLIP)
    assert collection.count() == len(points)
    row = {p.id: n for n, p in enumerate(points)}
    for query in [p.vector for p in make_points(20, seed=7)]:
        scores = cosines(points, query)
        best = np.sort(scores)[::-1]
        for top_k, offset in ((1, 0), (10, 0), (10, 90), (1000, 0), (1000, 2000)):
            found = collection.query(query, top_k, offset=offset)
            given = [m.score for m in found]
            np.testing.assert_allclose(given, best[offset : offset + top_k], atol=1e-6)
            np.testing.assert_allclose(given, scores[[row[m.id] for m in found]], atol=1e-6)
        for wanted in (1, 5, 50):
            between = best[wanted - 1 : wanted + 1].mean()
            found = collection.query(query, 100, score_threshold=float(between))
            assert len(found) == wanted


def test_a_search_among_many_points_finds_the_best_with_their_true_scores(tmp_path: Path) -> None:
    points = make_points(MANY)
    with closing(EdgeStore(tmp_path)) as store:
        store.open("a", CLIP).upsert(points)
        check_exact(store, points)
    with closing(EdgeStore(tmp_path)) as store:
        check_exact(store, points)


@pytest.mark.parametrize(("top_k", "alike"), [(1, CANDIDATES), (1000, CANDIDATES + 3000)])
def test_as_many_as_are_scored_again_are_told_apart(tmp_path: Path, top_k: int, alike: int) -> None:
    """The frames of a film: 4 bits are off by more than they differ."""
    points = make_points(MANY)
    film = [replace(p, vector=points[0].vector + 0.05 * p.vector) for p in points[:alike]]
    points = [*film, *points[alike:]]
    with closing(EdgeStore(tmp_path)) as store:
        collection = store.open("a", CLIP)
        collection.upsert(points)
        for frame in film[::40]:
            best = np.sort(cosines(points, frame.vector))[::-1][:top_k]
            found = collection.query(frame.vector, top_k)
            np.testing.assert_allclose([m.score for m in found], best, atol=1e-6)


def test_pages_are_whole_where_more_have_one_score_than_are_put_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.store.ranking.MAX_DEPTH", 2000)
    one, *others = make_points(MANY)
    with closing(EdgeStore(tmp_path)) as store:
        collection = store.open("a", CLIP)
        collection.upsert([replace(p, vector=one.vector) for p in [one, *others]])
        pages = [collection.query(one.vector, 90, offset=90 * n) for n in range(20)]
    ids = [m.id for page in pages for m in page]
    assert len(set(ids)) == len(ids) == 1800
    assert ids == sorted(ids)


def test_changes_among_many_points_survive_a_killed_process(tmp_path: Path) -> None:
    code = f"""
collection = EdgeStore(Path(sys.argv[1])).open("a", CLIP)
points = make_points({MANY})
collection.upsert(points)
collection.flush()
collection.upsert([replace(p, vector=p.vector[::-1]) for p in points[:1000]])
assert collection.delete([p.id for p in points[-500:]]) == 500
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = run(code, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    points = make_points(MANY)
    changed = [replace(p, vector=p.vector[::-1].copy()) for p in points[:1000]]
    with closing(EdgeStore(tmp_path)) as store:
        check_exact(store, [*changed, *points[1000:-500]])


@pytest.mark.parametrize("part", ["vectors", "quantized_data"])
def test_the_log_makes_up_for_files_of_an_earlier_moment(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power may leave some files as they were, and not others."""
    monkeypatch.setattr("rag.store.edge.collection.FLUSH_SECONDS", 3600)
    points = make_points(MANY)
    changed = [replace(p, vector=p.vector[::-1].copy()) for p in points[:500]]
    with closing(EdgeStore(tmp_path / "whole")) as store:
        collection = store.open("a", CLIP)
        collection.upsert(points[:-1000])
        collection.flush()
        [held] = (tmp_path / "whole" / SHARD).glob(f"segments/*/vector_storage/{part}")
        shutil.copytree(held, tmp_path / "earlier")
        collection.upsert([*changed, *points[-1000:]])
        shutil.copytree(tmp_path / "whole", tmp_path / "torn", symlinks=True)
    torn = tmp_path / "torn" / held.relative_to(tmp_path / "whole")
    shutil.rmtree(torn)
    shutil.move(tmp_path / "earlier", torn)
    with closing(EdgeStore(tmp_path / "torn")) as store:
        check_exact(store, [*changed, *points[500:]])


def test_a_collection_of_format_1_is_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = make_points(MANY)
    with monkeypatch.context() as before, closing(EdgeStore(tmp_path)) as store:
        before.setattr("rag.store.edge.folders.FORMAT", 1)
        before.setattr("rag.store.edge.collection.TurboQuantQuantizationConfig", lambda **_: None)
        store.open("a", CLIP).upsert(points[:-100])
    held = tmp_path / "a" / CLIP.generation
    assert json.loads((held / "collection.json").read_text())["format"] == 1
    assert "quant" not in (held / "shard" / "edge_config.json").read_text()
    with closing(EdgeStore(tmp_path)) as store:
        store.open("a", CLIP).upsert(points[-100:])
        check_exact(store, points)


def test_many_writes_are_flushed_so_that_the_log_stays_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.store.edge.collection.FLUSH_SECONDS", 3600)
    points = make_points(500)
    with closing(EdgeStore(tmp_path)) as store:
        collection = store.open("a", CLIP)
        collection.upsert(points)
        assert count_without_log(tmp_path) == 0
        for _ in range(FLUSH_POINTS // len(points)):
            collection.upsert(points)
        assert count_without_log(tmp_path) == 500


def test_the_last_writes_are_flushed_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.store.edge.collection.FLUSH_SECONDS", 0.2)
    points = make_points(5)
    with closing(EdgeStore(tmp_path)) as store:
        collection = store.open("a", CLIP)
        for count in (3, 5):
            collection.upsert(points[:count])
            deadline = time.monotonic() + 20
            while count_without_log(tmp_path) != count:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_what_is_published_outlasts_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.store.edge.collection.FLUSH_SECONDS", 3600)
    with closing(EdgeStore(tmp_path)) as store:
        store.open("a", OTHER)
        store.open("a", CLIP, staged=True).upsert(make_points(5))
        assert count_without_log(tmp_path) == 0
        store.publish("a", CLIP)
        assert count_without_log(tmp_path) == 5


def test_a_fork_is_refused_and_does_its_parent_no_harm(tmp_path: Path) -> None:
    code = """
store = EdgeStore(Path(sys.argv[1]))
collection = store.open("a", CLIP)
collection.upsert(make_points(3))
child = os.fork()
if child == 0:
    refused = 0
    for call in (collection.count, lambda: store.published("a"), lambda: store.open("a", CLIP)):
        try:
            call()
        except StoreLocked:
            refused += 1
    store.close()
    os._exit(refused)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
try:
    EdgeStore(Path(sys.argv[1]))
except StoreLocked:
    print("still locked", collection.count())
store.close()
"""
    result = run(code, tmp_path)
    assert result.stdout == "still locked 3\n", result.stderr
