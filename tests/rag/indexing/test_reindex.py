"""Re-embedding a collection with another model, while the old version still answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bento.contract.errors import (
    Busy,
    CollectionMismatch,
    CollectionNotFound,
    StoreFull,
    StoreUnavailable,
)
from rag import LocalBackend, Picture, SearchRequest
from rag.indexing.failures import IndexingError
from rag.indexing.reindex import Reindexed, reindex
from rag.store.edge.store import EdgeStore
from rag.store.interface import Store
from tests.support.rag.engines import quick_folder
from tests.support.rag.fakes import FakeEncoder
from tests.support.rag.library import ignore
from tests.support.rag.stores import by_wire, local_mode


class Shared:
    """A store that several backends use, and that only the fixture closes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Setting:
    """One collection, with a backend of the old model and one of the new model."""

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


@pytest.fixture(params=["embedded", by_wire("server")])
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setting]:
    with quick_folder(tmp_path) as folder:
        embedded = request.param == "embedded"
        store: Any = EdgeStore(folder / "q") if embedded else local_mode()
        setting = Setting(folder, store)
        yield setting
        setting.old.close()
        setting.new.close()
        store.close()


def search(top_k: int | None = None) -> SearchRequest:
    return SearchRequest(text=["x"], collection="c", top_k=top_k)


def held(backend: LocalBackend) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (image.dao_id, image.id): {**image.payload, "indexed_at": None}
        for image in backend.images("c")
    }


def test_the_new_model_replaces_the_old_one_with_all_payloads(setting: Setting) -> None:
    for n in range(10):
        setting.add(setting.old, f"p{n}", dao_id=f"dao{n % 2}")
    file = setting.add(setting.old, "pathless")
    pathless = Picture("pathless", b"pathless", "", "me", {}, [str(file)])
    setting.old.index([pathless], "c")
    before = held(setting.old)
    assert before["me", "pathless"]["duplicates"] == [str(file)]
    with pytest.raises(CollectionMismatch, match="old/random"):
        setting.new.search(search())
    assert len(setting.old.search(search(top_k=50)).hits) == 11

    done = setting.run()

    assert (done.published, done.embedded, done.failures) == (True, 11, [])
    assert held(setting.new) == before
    stats = setting.new.stats("c")
    assert stats.model == "new/random"
    assert stats.generations == {stats.serving: 11}
    assert len(setting.new.search(search(top_k=50)).hits) == 11
    with pytest.raises(CollectionMismatch, match="vision-rag reindex --collection c"):
        setting.old.search(search())
    assert (setting.run().embedded, len(setting.encoder.embedded)) == (0, 11)  # nothing to do


def test_staged_pictures_are_not_embedded_again(setting: Setting) -> None:
    for n in range(6):
        file = setting.add(setting.old, f"p{n}")
        if n < 4:  # as after a run that was killed
            title = "before" if n == 3 else f"p{n}"  # the title of p3 changed later
            data, metadata = file.read_bytes(), {"title": title, "tags": [f"p{n}"]}
            setting.new.index([Picture(f"p{n}", data, str(file), "me", metadata)], "c", staged=True)
    setting.old.delete("p0", "me", "c")
    assert setting.run().embedded == 2
    payloads = {key[1]: payload["title"] for key, payload in held(setting.new).items()}
    assert payloads == {name: name for name in ("p1", "p2", "p3", "p4", "p5")}


def test_a_missing_file_prevents_publishing(setting: Setting) -> None:
    setting.add(setting.old, "kept")
    setting.add(setting.old, "gone").unlink()
    setting.add(setting.old, "changed").write_bytes(b"something else")

    done = setting.run()

    assert not done.published
    assert sorted(Path(failure.path).stem for failure in done.failures) == ["changed", "gone"]
    assert [failure.code for failure in done.failures] == ["lost_file"] * 2
    assert len(setting.old.search(search()).hits) == 3
    assert setting.run(drop_missing=True).published
    assert {key[1] for key in held(setting.new)} == {"kept"}
    assert setting.encoder.embedded == [b"kept"]


def test_a_staged_picture_that_has_changed_is_not_published(setting: Setting) -> None:
    for name in ("kept", "replaced"):
        setting.add(setting.old, name)
    setting.add(setting.old, "gone").unlink()
    assert not setting.run().published
    unfiled = Picture("replaced", b"something else", "", "me", {})
    setting.old.index([unfiled], "c")

    done = setting.run(drop_missing=True)

    assert (done.published, len(done.failures)) == (True, 2)
    assert {key[1] for key in held(setting.new)} == {"kept"}


def test_an_empty_collection_changes_its_model(setting: Setting) -> None:
    setting.add(setting.old, "p")
    setting.old.delete("p", "me", "c")
    assert setting.run().published
    stats = setting.new.stats("c")
    assert (stats.generation, stats.generations) == (stats.serving, {stats.serving: 0})


def test_a_run_that_would_empty_the_collection_fails(setting: Setting) -> None:
    setting.add(setting.old, "gone").unlink()
    with pytest.raises(IndexingError, match="no picture of the collection 'c' can be") as caught:
        setting.run(drop_missing=True)
    assert caught.value.code == "nothing_left"
    assert len(held(setting.old)) == 1


def test_a_failure_of_the_store_does_not_wait_for_a_busy_service(
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
    with pytest.raises(StoreFull):
        setting.run()
    assert time.monotonic() - began < 10


def test_writes_of_the_old_model_during_a_run_are_repeated(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(4):
        setting.add(setting.old, f"p{n}")
    publish, index = setting.new.publish, setting.new.index
    once = threading.Lock()

    def index_and_write(*args: Any, **kwargs: Any) -> Any:
        if once.acquire(blocking=False):  # during filling
            setting.add(setting.old, "during")
            setting.old.delete("p0", "me", "c")
        return index(*args, **kwargs)

    def publish_late(collection: str) -> Any:
        setting.add(setting.old, "late")  # after the last listing of the published version
        setting.old.delete("p1", "me", "c")
        return publish(collection)

    monkeypatch.setattr(setting.new, "index", index_and_write)
    monkeypatch.setattr(setting.new, "publish", publish_late)
    done = setting.run()
    assert (done.published, done.failures) == (True, [])
    assert {key[1] for key in held(setting.new)} == {"p2", "p3", "during", "late"}


def test_the_old_model_answers_until_the_new_version_is_published(setting: Setting) -> None:
    for n in range(60):
        setting.add(setting.old, f"p{n}")
    request = search(top_k=7)
    wanted = [hit.id for hit in setting.old.search(request).hits]
    answers: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append([hit.id for hit in setting.old.search(request).hits])
            except CollectionMismatch:
                answers.append("mismatch")
            except StoreUnavailable:  # opened before publishing, queried after it
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


def test_re_embedding_a_missing_collection_fails(setting: Setting) -> None:
    with pytest.raises(CollectionNotFound):
        setting.run()
