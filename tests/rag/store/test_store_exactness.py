"""Searches of the embedded store return true scores, although it scans 4-bit vectors."""

from __future__ import annotations

import json
import shutil
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from qdrant_edge import Distance, EdgeConfig, EdgeShard, EdgeVectorParams, UpdateOperation
from qdrant_edge import Point as EdgePoint

from bento.contract.limits import MAX_DEPTH
from rag.store.checks import identity_to_json
from rag.store.edge.collection import CANDIDATES, Limits
from rag.store.edge.store import EdgeStore
from rag.store.interface import Point
from tests.support.rag.engines import CLIP, DIM, cosines, make_points, run

pytestmark = pytest.mark.service

SHARD = Path("a") / CLIP.generation / "shard"
MANY = 5 * CANDIDATES  # so many that a search rescores only some of them


def check_exact(store: EdgeStore, points: list[Point]) -> None:
    """Compare the results of searches with the true cosines of all points."""
    collection = store.open("a", CLIP)
    assert collection.count() == len(points)
    row = {p.id: n for n, p in enumerate(points)}
    for query in [p.vector for p in make_points(6, seed=7)]:
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


def test_a_search_among_many_points_finds_the_best_with_true_scores(folder: Path) -> None:
    points = make_points(MANY)
    with closing(EdgeStore(folder)) as store:
        store.open("a", CLIP).upsert(points)
        check_exact(store, points)
    with closing(EdgeStore(folder)) as store:
        check_exact(store, points)


@pytest.mark.parametrize(("top_k", "alike"), [(1, CANDIDATES), (1000, CANDIDATES + 3000)])
def test_similar_vectors_are_ranked_correctly(folder: Path, top_k: int, alike: int) -> None:
    """Rank frames of a film, whose scores differ by less than the error of 4 bits."""
    points = make_points(MANY)
    film = [replace(p, vector=points[0].vector + 0.05 * p.vector) for p in points[:alike]]
    points = [*film, *points[alike:]]
    with closing(EdgeStore(folder)) as store:
        collection = store.open("a", CLIP)
        collection.upsert(points)
        for frame in film[::100]:
            best = np.sort(cosines(points, frame.vector))[::-1][:top_k]
            found = collection.query(frame.vector, top_k)
            np.testing.assert_allclose([m.score for m in found], best, atol=1e-6)


def test_pages_neither_skip_nor_repeat_points_if_more_than_the_limit_have_one_score(
    folder: Path,
) -> None:
    one, *others = make_points(MAX_DEPTH + 1000)
    with closing(EdgeStore(folder)) as store:
        collection = store.open("a", CLIP)
        collection.upsert([replace(p, vector=one.vector) for p in [one, *others]])
        pages = [collection.query(one.vector, 900, offset=900 * n) for n in range(11)]
    ids = [m.id for page in pages for m in page]
    assert len(set(ids)) == len(ids) == 9900
    assert ids == sorted(ids)


def test_changes_among_many_points_survive_a_killed_process(folder: Path) -> None:
    code = f"""
collection = EdgeStore(Path(sys.argv[1])).open("a", CLIP)
points = make_points({MANY})
collection.upsert(points)
collection.flush()
collection.upsert([replace(p, vector=p.vector[::-1]) for p in points[:1000]])
assert collection.delete([p.id for p in points[-500:]]) == 500
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = run(code, folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    points = make_points(MANY)
    changed = [replace(p, vector=p.vector[::-1].copy()) for p in points[:1000]]
    with closing(EdgeStore(folder)) as store:
        check_exact(store, [*changed, *points[1000:-500]])


@pytest.mark.parametrize("part", ["vectors", "quantized_data"])
def test_the_log_repairs_files_of_different_age(folder: Path, part: str) -> None:
    """Replace some files with older ones, as a power failure may do."""
    points = make_points(MANY)
    changed = [replace(p, vector=p.vector[::-1].copy()) for p in points[:500]]
    with closing(EdgeStore(folder / "whole", Limits(flush_seconds=3600))) as store:
        collection = store.open("a", CLIP)
        collection.upsert(points[:-1000])
        collection.flush()
        [held] = (folder / "whole" / SHARD).glob(f"segments/*/vector_storage/{part}")
        shutil.copytree(held, folder / "earlier")
        collection.upsert([*changed, *points[-1000:]])
        shutil.copytree(folder / "whole", folder / "torn", symlinks=True)
    torn = folder / "torn" / held.relative_to(folder / "whole")
    shutil.rmtree(torn)
    shutil.move(folder / "earlier", torn)
    with closing(EdgeStore(folder / "torn")) as store:
        check_exact(store, [*changed, *points[500:]])


def test_a_collection_of_format_1_is_read_and_written(folder: Path) -> None:
    """Write format 1, which has no 4-bit vectors, with the engine itself."""
    points = make_points(MANY)
    version = folder / "a" / CLIP.generation
    version.mkdir(parents=True)
    written = {"format": 1, "identity": identity_to_json(CLIP)}
    (version / "collection.json").write_text(json.dumps(written))
    (folder / "a" / "published").symlink_to(CLIP.generation)
    vectors = EdgeVectorParams(size=DIM, distance=Distance.Cosine)
    shard = EdgeShard.create(str(version / "shard"), EdgeConfig(vectors=vectors))
    held = [EdgePoint(p.id, p.vector.tolist(), p.payload) for p in points[:-100]]
    shard.update(UpdateOperation.upsert_points(held))
    shard.close()
    with closing(EdgeStore(folder)) as store:
        store.open("a", CLIP).upsert(points[-100:])
        check_exact(store, points)
