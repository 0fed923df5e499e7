"""The embedded store with 100 000 points: python -m benchmarks.search

Random vectors of 512 dimensions: upserts, reopening, searches with and without a filter that lets
5 % through, and the memory that this adds to a process that does nothing else. Beside them, what
one core needs to read as many vectors: the engine scans them all, and with one core.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np
import psutil  # type: ignore[import-untyped]

from benchmarks.harness import parse, parser, percentile, report, say, table_of
from rag.edge import EdgeStore
from rag.filters import Filter, MatchAny, tenant
from rag.store import Collection, ModelIdentity, Point

_DIMENSION: Final = 512
_BATCH: Final = 256
_TOP_K: Final = 10
_TAGS: Final = 20  # each point has one, so that a tag lets 5 % through
_IDENTITY: Final = ModelIdentity("random", "none", "sha256:0", "none", _DIMENSION)
_FILTERS: Final[dict[str, Filter | None]] = {
    "search": None,
    "search, 5 % by a tag": Filter(must=(MatchAny("tags", ("tag 7",)),)),
    "search, a tenant that has all": tenant("default"),
}


def in_fresh_process(measure: Callable[..., dict[str, float]], *args: Any) -> dict[str, float]:
    """Return what a function measures in a process of its own."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned) as pool:
        return pool.submit(measure, *args).result()


def fill(folder: Path, count: int) -> dict[str, float]:
    """Upsert all points into a fresh store; points/s."""
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
    """Return a point with a payload such as indexing gives it."""
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


def search(folder: Path, count: int, queries: int) -> dict[str, float]:
    """Reopen the store, then search; seconds, milliseconds and added megabytes."""
    empty = memory()
    began = time.perf_counter()
    with closing(EdgeStore(folder)) as store:
        collection = store.open("random", _IDENTITY, create=False)
        figures = {"reopen": time.perf_counter() - began}
        assert collection.count() == count
        for name, filter in _FILTERS.items():
            times = [ask(collection, n, filter) for n in range(queries)]
            figures |= {f"{name} p{p}": percentile(times, p) for p in (50, 95)}
        figures |= {name: held - empty[name] for name, held in memory().items()}
    return figures


def memory() -> dict[str, float]:
    """Return the megabytes that this process holds.

    The engine maps the vectors twice, once for scans and once for single reads, and RSS counts
    each mapping; PSS counts each page once, and is what the machine has less.
    """
    info = psutil.Process().memory_full_info()
    return {"memory, RSS": info.rss / 1e6, "memory, PSS": info.pss / 1e6}


def ask(collection: Collection, seed: int, filter: Filter | None) -> float:
    """Return the milliseconds that one search takes."""
    vector = np.random.default_rng(seed).normal(size=_DIMENSION).astype(np.float32)
    began = time.perf_counter()
    found = collection.query(vector, _TOP_K, filter=filter)
    took = time.perf_counter() - began
    assert len(found) == _TOP_K
    return took * 1000


def one_pass(count: int) -> dict[str, float]:
    """Return the milliseconds that one core needs for the products of a query with all vectors."""
    import torch

    torch.set_num_threads(1)
    vectors, query = torch.randn(count, _DIMENSION), torch.randn(_DIMENSION)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        torch.mv(vectors, query)
        times.append((time.perf_counter() - began) * 1000)
    return {"one core reads all vectors p50": percentile(times, 50)}


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(parser(__doc__, model=False), argv)
    count, queries = (5_000, 20) if options.quick else (100_000, 300)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        say(f"upserting {count} points")
        figures = in_fresh_process(fill, folder, count)
        say("searching")
        figures |= in_fresh_process(one_pass, count)
        figures |= in_fresh_process(search, folder, count, queries)
    targets = {"search p50": 15, "search, 5 % by a tag p50": 5, "reopen": 2, "memory, PSS": 500}
    units = {"upsert": "points/s", "reopen": "s", "memory, RSS": "MB", "memory, PSS": "MB"}
    rows = [
        {"what": name, "value": value, "unit": units.get(name, "ms"), "target": targets.get(name)}
        for name, value in figures.items()
    ]
    columns = {"what": "what", "value": "measured", "unit": "unit", "target": "at most"}
    report("search", options, table_of(columns, rows), {"points": count, "rows": rows})


if __name__ == "__main__":
    main()
