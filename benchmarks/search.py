"""Measure the embedded store with 100,000 random vectors of 512 dimensions.

    python -m benchmarks.search

It measures upserts, reopening, searches with and without filters (one matches 5 % of the points),
and the memory that the store adds to an idle process. The engine selects candidates by 4 bits of
each number and scores only those exactly. So the benchmark also counts the best points it misses.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

import numpy as np
import psutil  # type: ignore[import-untyped]

from benchmarks.support.command import parse, parser, report, say
from benchmarks.support.record import table_of
from bento.contract.filters import Filter, all_of, match_any, tenant
from loadtests.samples import percentile
from rag.store.edge.store import EdgeStore
from rag.store.interface import ModelIdentity, Point

_DIMENSION: Final = 512
_BATCH: Final = 256
_TAGS: Final = 20  # each point has one, so that a tag matches 5 % of them
_IDENTITY: Final = ModelIdentity("random", "none", "sha256:0", "none", _DIMENSION)
_ALL: Final = "search"
_DEEP: Final = "search, 1,000 results"
_SEARCHES: Final[dict[str, tuple[int, Filter | None]]] = {
    _ALL: (10, None),
    "search, 5 % by a tag": (10, all_of(match_any("tags", ["tag 7"]))),
    "search, a tenant that has all": (10, tenant("default")),
    _DEEP: (1000, None),
}

T = TypeVar("T")
Found = dict[str, list[list[str]]]  # by search, the ids of each query's results, best first


def in_fresh_process(measure: Callable[..., T], *args: Any) -> T:
    """Return the result of a function that runs in a process of its own."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned) as pool:
        return pool.submit(measure, *args).result()


def fill(folder: Path, count: int) -> dict[str, float]:
    """Upsert all points into a fresh store; return the points/s."""
    rng = np.random.default_rng(0)
    took = 0.0
    with closing(EdgeStore(folder)) as store:
        collection = store.open("random", _IDENTITY)
        for start in range(0, count, _BATCH):
            points = [point(n, rng) for n in range(start, min(start + _BATCH, count))]
            began = time.perf_counter()
            collection.upsert(points)
            took += time.perf_counter() - began
    return {"upsert": count / took}


def point(n: int, rng: np.random.Generator) -> Point:
    """Return a point with a payload as indexing writes it."""
    payload = {
        "dao_id": "default",
        "image_id": f"{n:032x}",
        "image_path": f"/pictures/2026/{n % 365:03}/{n:06}.jpg",
        "title": f"picture {n}",
        "tags": [f"tag {n % _TAGS}"],
        "content_hash": f"{n:064x}",
        "indexed_at": "2026-11-24T12:00:00.000000+00:00",
    }
    vector = rng.normal(size=_DIMENSION).astype(np.float32)
    return Point(str(UUID(bytes=rng.bytes(16))), vector, payload)


def query(seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=_DIMENSION).astype(np.float32)


def search(folder: Path, count: int, queries: int) -> tuple[dict[str, float], Found]:
    """Reopen the store and search it.

    Return the seconds of reopening, the milliseconds of searches and the added MB; and the results.
    """
    empty = psutil.Process().memory_info().rss
    began = time.perf_counter()
    with closing(EdgeStore(folder)) as store:
        collection = store.open("random", _IDENTITY, create=False)
        figures = {"reopen": time.perf_counter() - began}
        assert collection.count() == count
        found: Found = {}
        for name, (top_k, filter) in _SEARCHES.items():
            times, found[name] = [], []
            for n in range(queries // 10 if name == _DEEP else queries):
                vector = query(n)
                began = time.perf_counter()
                matches = collection.query(vector, top_k, filter=filter)
                times.append((time.perf_counter() - began) * 1000)
                assert len(matches) == top_k
                found[name].append([match.id for match in matches])
            figures |= {f"{name} p{p}": percentile(times, p) for p in (50, 95)}
        figures["memory"] = (psutil.Process().memory_info().rss - empty) / 1e6
    return figures, found


def missed(count: int, found: Found) -> dict[str, float]:
    """Return the percentages of the best points, by exact cosine, that were not found."""
    rng = np.random.default_rng(0)
    points = [point(n, rng) for n in range(count)]
    vectors = np.stack([p.vector for p in points])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    shares = {}
    for name in (_ALL, _DEEP):
        top_k, _ = _SEARCHES[name]
        wrong = 0
        for seed, ids in enumerate(found[name]):
            best = np.argpartition(vectors @ query(seed), -top_k)[-top_k:]
            wrong += len({points[n].id for n in best} - set(ids))
        shares[f"missed of the {top_k:,} best"] = 100 * wrong / (top_k * len(found[name]))
    return shares


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(parser(__doc__, model=False), argv)
    count, queries = (5_000, 20) if options.quick else (100_000, 300)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        say(f"upserting {count} points")
        figures = in_fresh_process(fill, folder, count)
        say("searching")
        searched, found = in_fresh_process(search, folder, count, queries)
        figures |= searched
        say("comparing with exact cosines")
        figures |= in_fresh_process(missed, count, found)
    targets = {"search p50": 15, "search, 5 % by a tag p50": 5, "reopen": 2, "memory": 500}
    units = {"upsert": "points/s", "reopen": "s", "memory": "MB"}
    rows = [
        {
            "what": name,
            "value": value,
            "unit": "%" if name.startswith("missed") else units.get(name, "ms"),
            "target": targets.get(name),
        }
        for name, value in figures.items()
    ]
    columns = {"what": "operation", "value": "measured", "unit": "unit", "target": "at most"}
    report("search", options, [table_of(columns, rows)], {"points": count, "rows": rows})


if __name__ == "__main__":
    main()
