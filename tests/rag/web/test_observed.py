"""What the service reports about its store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from bento.contract.errors import CollectionMismatch, StoreFull, StoreUnavailable
from rag.pictures.index import PictureIndex
from rag.store.edge.collection import Limits
from rag.store.edge.store import EdgeStore
from rag.store.interface import Store
from rag.web.observed import observed, watch
from tests.support.rag.engines import CLIP, OTHER, make_points, quick_folder


class Observer:
    """Keeps what is reported; `on_call` runs after each call of the store."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool]] = []
        self.seen: list[tuple[str, int]] = []
        self.on_call: Callable[[], object] = lambda: None

    def called(self, operation: str, seconds: float, *, answered: bool) -> None:
        assert 0 <= seconds < 10
        self.calls.append((operation, answered))
        self.on_call()

    def points(self, count: int) -> None:
        self.seen.append(("points", count))

    def mismatch(self, found: bool) -> None:
        self.seen.append(("mismatch", found))

    def free_bytes(self, count: int) -> None:
        self.seen.append(("free", count))


class _Down:
    """A store that does not answer."""

    def __getattr__(self, name: str) -> Any:
        def fail(*args: Any, **options: Any) -> None:
            raise StoreUnavailable("down")

        return fail


DOWN: Any = _Down()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with quick_folder(tmp_path) as quick:
        yield quick / "qdrant"


def test_every_call_of_a_store_and_its_collections_is_reported(folder: Path) -> None:
    observer = Observer()
    with closing(observed(EdgeStore(folder), observer)) as store:
        held = store.open("a", CLIP)
        held.upsert(make_points(3))
        assert (held.name, held.identity, held.count()) == ("a", CLIP, 3)
        assert len(held.query(make_points(1)[0].vector, 2)) == 2
        (again,) = store.generations("a")
        assert again.count() == 3
        assert store.published("none") is None
        published = store.published("a")
        assert published is not None
        assert published.count() == 3
    operations = [operation for operation, _ in observer.calls]
    assert operations == [
        *("open", "upsert", "count", "query", "generations", "count"),
        *("published", "published", "count", "close"),
    ]
    assert all(answered for _, answered in observer.calls)


def test_only_a_store_that_does_not_answer_is_down(folder: Path) -> None:
    observer = Observer()
    with pytest.raises(StoreUnavailable):
        observed(DOWN, observer).open("a", CLIP)
    limits = Limits()
    with closing(observed(EdgeStore(folder, limits), observer)) as store:
        held = store.open("a", CLIP)
        with pytest.raises(CollectionMismatch):
            store.open("a", OTHER)
        limits.min_free_bytes = 1 << 60
        with pytest.raises(StoreFull):
            held.upsert(make_points(1))
    answered = [("open", False), ("open", True), ("open", True), ("upsert", True), ("close", True)]
    assert observer.calls == answered


def checked(store: Store, folder: Path | None, observer: Observer) -> list[tuple[str, int]]:
    """Check the collection `a` once, and return what was reported."""
    closed = Event()
    closed.set()
    pictures = PictureIndex(observed(store, observer), CLIP)
    observer.seen.clear()
    watch(pictures, "a", folder, observer, closed)
    return observer.seen


def test_a_check_reports_the_points_the_disk_and_a_mismatch(folder: Path) -> None:
    observer = Observer()
    with closing(EdgeStore(folder)) as store:
        _, *rest = checked(store, folder, observer)
        assert rest == [("points", 0), ("mismatch", False)]  # no collection
        store.open("a", CLIP).upsert(make_points(3))
        free, *rest = checked(store, folder, observer)
        assert free[1] > 1 << 20
        assert rest == [("points", 3), ("mismatch", False)]
        store.open("a", OTHER, staged=True)
        store.publish("a", OTHER)
        assert checked(store, None, observer) == [("mismatch", True)]
    assert checked(DOWN, None, observer) == []
    assert observer.calls[-1] == ("open", False)
    assert checked(store, folder / "gone", observer) == []  # a check survives a missing folder


def test_checks_repeat_until_the_store_is_closed(folder: Path) -> None:
    observer, closed = Observer(), Event()

    def close() -> None:
        if len(observer.calls) == 6:
            closed.set()

    observer.on_call = close
    with closing(EdgeStore(folder)) as store:
        store.open("a", CLIP)
        watch(PictureIndex(observed(store, observer), CLIP), "a", None, observer, closed, 0.001)
    assert observer.calls == [("open", True), ("count", True)] * 3
