"""Indexing while other threads and clients write, delete or change pictures."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from bento.contract.search import image_example
from rag import Picture, SearchRequest
from rag.indexing.backends import hold
from rag.indexing.plan import make_plan
from rag.indexing.run import carry_out, hash_sources
from rag.indexing.sources import find_sources
from rag.store.edge.collection import EdgeCollection
from tests.support.rag.library import Library, counts, ignore


def test_a_run_writes_new_pictures_before_it_removes_old_paths(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write(a="A", z="A")
    library.run()
    library.write(z="new")
    done: list[str] = []
    index, update = library.backend.index, library.backend.update

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.02)
        outcome = index(*args, **kwargs)
        done.append("written")
        return outcome

    def removing(*args: Any, **kwargs: Any) -> Any:
        done.append("removed")
        return update(*args, **kwargs)

    monkeypatch.setattr(library.backend, "index", slow)
    monkeypatch.setattr(library.backend, "update", removing)
    assert counts(library.run()) == (1, 1, 0, 0)
    assert done == ["written", "removed"]


@pytest.mark.parametrize("again", ["update", "index"])
def test_concurrent_writes_keep_payload_and_vector_together(
    library: Library, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    old, new = (Picture("1", data, "/1", "me", {"note": 1}) for data in (b"A", b"B"))
    index = partial(library.backend.index, collection="c")
    index([old])
    other = threading.Thread(target=index, args=([new],))
    retrieve = EdgeCollection.retrieve

    def retrieve_and_write(*args: Any, **options: Any) -> Any:
        found = retrieve(*args, **options)
        if threading.current_thread() is not other:
            other.start()
            other.join(0.2)  # it must wait until the first thread has written
        return found

    with monkeypatch.context() as patch:
        patch.setattr(EdgeCollection, "retrieve", retrieve_and_write)
        if again == "index":
            index([replace(old, metadata={"note": 2})])
        else:
            library.backend.update("1", "me", "c", metadata={"note": 2})
        other.join()
    (held,) = library.backend.images("c")
    assert (held.payload["content_hash"], held.payload["note"]) == (new.content_hash, 1)
    found = library.backend.search(SearchRequest(image=[image_example(b"B")], collection="c"))
    assert found.hits[0].score == pytest.approx(1)


@pytest.mark.parametrize(("batch", "calls", "largest"), [(4, 3, 4), (12, 1, 12), (20, 1, 12)])
def test_a_run_indexes_as_many_pictures_at_a_time_as_there_are_workers(
    library: Library, monkeypatch: pytest.MonkeyPatch, batch: int, calls: int, largest: int
) -> None:
    monkeypatch.setattr(library.backend, "batch", batch)
    library.write(**{f"p{n}": f"{n}" for n in range(50)})
    hashed, _ = hash_sources(find_sources([str(library.top)], ()), 4, ignore)
    under_way, most, together = 0, 0, threading.Barrier(calls)
    lock = threading.Lock()
    index = library.backend.index

    def watched(pictures: Any, **more: Any) -> Any:
        nonlocal under_way, most
        with lock:
            under_way += len(pictures)
            most = max(most, under_way)
        if len(pictures) == largest and together.n_waiting < calls and not together.broken:
            with suppress(threading.BrokenBarrierError):
                together.wait(5)  # proves that all workers run at the same time
            together.abort()
        try:
            return index(pictures, **more)
        finally:
            with lock:
                under_way -= len(pictures)

    monkeypatch.setattr(library.backend, "index", watched)
    report = carry_out(make_plan(hashed, []), library.backend, "c", "me", 12, ignore)
    assert (counts(report), most) == ((50, 0, 0, 0), 12)


def test_a_picture_that_another_client_deletes_is_embedded_again(library: Library) -> None:
    library.write(a="A", b="B", c="C")
    library.run()
    held = hold(library.backend, "c", "me")
    library.write(d="A", e="B")
    hashed, _ = hash_sources(find_sources([str(library.top)], ()), 1, ignore)
    (deleted,) = (image.id for image in held if image.path.endswith("a.png"))
    assert library.backend.delete(deleted, "me", "c")
    report = carry_out(make_plan(hashed, held), library.backend, "c", "me", 4, ignore)
    assert counts(report) == (1, 1, 1, 0)
    assert library.held() == {"a": ["a", "d"], "b": ["b", "e"], "c": ["c"]}
    assert library.encoder.embedded.count(b"A") == 2


def test_a_file_that_changes_during_a_run_fails_and_the_next_run_indexes_it(
    library: Library,
) -> None:
    library.write(a="A")
    sources = find_sources([str(library.top)], ())
    hashed, _ = hash_sources(sources, 1, ignore)
    library.write(a="new")
    report = carry_out(make_plan(hashed, []), library.backend, "c", "me", 1, ignore)
    assert [failure.code for failure in report.failures] == ["changed_file"]
    assert counts(library.run()) == (1, 0, 0, 0)
    assert library.encoder.embedded == [b"new"]
