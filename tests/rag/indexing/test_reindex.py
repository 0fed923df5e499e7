"""Filling a collection anew with another model, while the old one goes on serving."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient
from rag.errors import (
    CollectionMismatch,
    CollectionNotFound,
    InvalidSearch,
    StoreFull,
    StoreUnavailable,
)

from bento.contract.errors import Busy
from rag import LocalBackend, Picture, SearchRequest
from rag.indexing.reindex import Reindexed, reindex
from rag.store.edge.store import EdgeStore
from rag.store.interface import Store
from rag.store.server.store import ServerStore
from tests.support.rag.fakes import FakeEncoder
from tests.support.rag.library import ignore


class Shared:
    """A store that several backends use and none of them closes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Setting:
    """The same collection seen through the old and the new model."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder = folder
        shared: Any = Shared(store)
        self.old = LocalBackend(FakeEncoder("old"), shared)
        self.encoder = FakeEncoder("new")
        self.new = LocalBackend(self.encoder, shared)

    def add(self, backend: LocalBackend, name: str, dao_id: str = "me") -> Path:
        file = self.folder / f"{name}.png"
        file.write_bytes(name.encode())
        metadata = {"title": name, "tags": [name]}
        backend.index([Picture(name, file.read_bytes(), str(file), dao_id, metadata)], "c")
        return file

    def run(self, *, drop_missing: bool = False) -> Reindexed:
        return reindex(self.new, "c", workers=4, drop_missing=drop_missing, progress=ignore)


@pytest.fixture(params=["embedded", "server"])
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setting]:
    embedded = request.param == "embedded"
    store: Any = EdgeStore(tmp_path / "q") if embedded else ServerStore(QdrantClient(":memory:"))
    setting = Setting(tmp_path, store)
    yield setting
    setting.old.close()
    setting.new.close()
    store.close()


def held(backend: LocalBackend) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (image.dao_id, image.id): {**image.payload, "indexed_at": None}
        for image in backend.images("c")
    }


def test_the_new_model_replaces_the_old_one_with_all_payloads(setting: Setting) -> None:
    for n in range(10):
        setting.add(setting.old, f"p{n}", dao_id=f"dao{n % 2}")
    place = setting.add(setting.old, "unplaced")
    unplaced = Picture("unplaced", b"unplaced", "", "me", {}, [str(place)])
    setting.old.index([unplaced], "c")
    before = held(setting.old)
    assert before["me", "unplaced"]["duplicates"] == [str(place)]
    with pytest.raises(CollectionMismatch, match="old/random"):
        setting.new.search(SearchRequest(text="x", collection="c"))
    assert len(setting.old.search(SearchRequest(text="x", collection="c", top_k=50)).hits) == 11

    done = setting.run()

    assert (done.published, done.embedded, done.failures) == (True, 11, [])
    assert held(setting.new) == before
    stats = setting.new.stats("c")
    assert stats.model == "new/random" and stats.generations == {stats.serving: 11}
    assert len(setting.new.search(SearchRequest(text="x", collection="c", top_k=50)).hits) == 11
    with pytest.raises(CollectionMismatch, match="vision-rag reindex --collection c"):
        setting.old.search(SearchRequest(text="x", collection="c"))
    assert (setting.run().embedded, len(setting.encoder.embedded)) == (0, 11)  # nothing to do


def test_what_is_staged_already_is_not_embedded_again(setting: Setting) -> None:
    for n in range(6):
        file = setting.add(setting.old, f"p{n}")
        if n < 4:  # as a run that was killed left it
            title = "before" if n == 3 else f"p{n}"  # changed since
            data, metadata = file.read_bytes(), {"title": title, "tags": [f"p{n}"]}
            setting.new.index([Picture(f"p{n}", data, str(file), "me", metadata)], "c", staged=True)
    setting.old.delete("p0", "me", "c")
    assert setting.run().embedded == 2
    payloads = {key[1]: payload["title"] for key, payload in held(setting.new).items()}
    assert payloads == {name: name for name in ("p1", "p2", "p3", "p4", "p5")}


def test_a_picture_without_its_file_stops_it_before_publishing(setting: Setting) -> None:
    setting.add(setting.old, "kept")
    setting.add(setting.old, "gone").unlink()
    setting.add(setting.old, "changed").write_bytes(b"something else")

    done = setting.run()

    assert not done.published
    assert sorted(Path(failure.path).stem for failure in done.failures) == ["changed", "gone"]
    assert "its file is gone or has changed" in done.failures[0].why
    assert len(setting.old.search(SearchRequest(text="x", collection="c")).hits) == 3
    assert setting.run(drop_missing=True).published
    assert {key[1] for key in held(setting.new)} == {"kept"}
    assert setting.encoder.embedded == [b"kept"]


def test_what_was_staged_of_a_picture_that_changed_since_is_not_published(setting: Setting) -> None:
    for name in ("kept", "replaced"):
        setting.add(setting.old, name)
    setting.add(setting.old, "gone").unlink()
    assert not setting.run().published
    unfiled = Picture("replaced", b"something else", "", "me", {})
    setting.old.index([unfiled], "c")

    done = setting.run(drop_missing=True)

    assert (done.published, len(done.failures)) == (True, 2)
    assert {key[1] for key in held(setting.new)} == {"kept"}


def test_an_empty_collection_changes_its_model_too(setting: Setting) -> None:
    setting.add(setting.old, "p")
    setting.old.delete("p", "me", "c")
    assert setting.run().published
    stats = setting.new.stats("c")
    assert (stats.generation, stats.generations) == (stats.serving, {stats.serving: 0})


def test_it_says_when_nothing_would_be_left(setting: Setting) -> None:
    setting.add(setting.old, "gone").unlink()
    with pytest.raises(InvalidSearch, match="no picture of the collection 'c' can be embedded"):
        setting.run(drop_missing=True)
    assert len(held(setting.old)) == 1


def test_what_stops_it_does_not_wait_for_a_busy_service(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        setting.add(setting.old, name)
    waiting = threading.Event()

    def index(pictures: list[Picture], collection: str, *, staged: bool) -> Any:
        if pictures[0].image_id == "a":
            assert waiting.wait(10)
            raise StoreFull("the disk is full")
        waiting.set()
        raise Busy("busy", retry_after=15)

    monkeypatch.setattr(setting.new, "index", index)
    began = time.monotonic()
    with pytest.raises(StoreFull, match="full"):
        setting.run()
    assert time.monotonic() - began < 10


def test_what_the_old_model_writes_meanwhile_is_brought_over(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(4):
        setting.add(setting.old, f"p{n}")
    publish, index = setting.new.publish, setting.new.index
    once = threading.Lock()

    def index_and_write(*args: Any, **kwargs: Any) -> Any:
        if once.acquire(blocking=False):  # while it fills
            setting.add(setting.old, "during")
            setting.old.delete("p0", "me", "c")
        return index(*args, **kwargs)

    def publish_late(collection: str) -> Any:
        setting.add(setting.old, "late")  # after the last look at what is published
        setting.old.delete("p1", "me", "c")
        return publish(collection)

    monkeypatch.setattr(setting.new, "index", index_and_write)
    monkeypatch.setattr(setting.new, "publish", publish_late)
    done = setting.run()
    assert (done.published, done.failures) == (True, [])
    assert {key[1] for key in held(setting.new)} == {"p2", "p3", "during", "late"}


def test_the_old_model_answers_right_until_the_switch_and_then_says_so(setting: Setting) -> None:
    for n in range(60):
        setting.add(setting.old, f"p{n}")
    request = SearchRequest(text="x", collection="c", top_k=7)
    wanted = [hit.id for hit in setting.old.search(request).hits]
    answers: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append([hit.id for hit in setting.old.search(request).hits])
            except CollectionMismatch:
                answers.append("mismatch")
            except StoreUnavailable:  # opened before the switch, looked at after it
                answers.append("mismatch")

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        setting.run()
    finally:
        stop.set()
        asking.join()
    switch = answers.index("mismatch") if "mismatch" in answers else len(answers)
    assert switch > 0
    assert all(answer == wanted for answer in answers[:switch])
    assert all(answer == "mismatch" for answer in answers[switch:])


def test_a_missing_collection_is_said_so(setting: Setting) -> None:
    with pytest.raises(CollectionNotFound, match="'c'"):
        setting.run()
