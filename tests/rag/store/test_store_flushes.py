"""The embedded store flushes, so that a power failure loses little."""

from __future__ import annotations

import shutil
import time
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from qdrant_edge import CountRequest, EdgeShard

from rag.store.edge.collection import Limits
from rag.store.edge.store import EdgeStore
from tests.support.rag.engines import CLIP, OTHER, make_points

SHARD = Path("a") / CLIP.generation / "shard"
NEVER = 3600.0  # seconds; no test runs so long


def count_without_log(path: Path) -> int:
    """Return how many points would survive a power failure that loses the log."""
    copy = path / uuid4().hex
    shutil.copytree(path / SHARD, copy)
    shutil.rmtree(copy / "wal")
    shard = EdgeShard.load(str(copy))
    try:
        return int(shard.count(CountRequest()))
    finally:
        shard.close()
        shutil.rmtree(copy)


def test_the_store_flushes_after_many_points(folder: Path) -> None:
    points = make_points(10)
    with closing(EdgeStore(folder, Limits(flush_points=30, flush_seconds=NEVER))) as store:
        collection = store.open("a", CLIP)
        for count in (0, 0, 10):
            collection.upsert(points)
            assert count_without_log(folder) == count


def test_the_store_flushes_the_last_writes_after_a_delay(folder: Path) -> None:
    points = make_points(5)
    with closing(EdgeStore(folder, Limits(flush_seconds=0.05))) as store:
        collection = store.open("a", CLIP)
        for count in (3, 5):
            collection.upsert(points[:count])
            deadline = time.monotonic() + 20
            while count_without_log(folder) != count:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_publishing_flushes_the_version(folder: Path) -> None:
    with closing(EdgeStore(folder, Limits(flush_seconds=NEVER))) as store:
        store.open("a", OTHER)
        store.open("a", CLIP, staged=True).upsert(make_points(5))
        assert count_without_log(folder) == 0
        store.publish("a", CLIP)
        assert count_without_log(folder) == 5
