"""Indexing files: what a run adds, updates, leaves, forgets, and what it says of failures."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import file_digest
from pathlib import Path
from typing import Any

import pytest

from bento.contract.errors import Busy
from rag import LocalBackend, Picture, SearchRequest
from rag.errors import StoreFull, StoreUnavailable
from rag.indexing.backends import image_example
from rag.indexing.duplicates import near_duplicates
from rag.indexing.plan import make_plan, never
from rag.indexing.run import Report, carry_out, each, hash_sources, hold, patiently
from rag.indexing.sources import find_sources
from rag.store.edge.collection import EdgeCollection
from rag.store.edge.store import EdgeStore
from router_client import VisionEncoderConnectionError
from tests.support.fakes import FakeEncoder


def ignore(what: str, done: int, total: int, note: str) -> None:
    pass


class Library:
    """A folder of pictures, and the index that they go into."""

    def __init__(self, top: Path) -> None:
        self.top = top / "pictures"
        self.top.mkdir()
        self.encoder = FakeEncoder()
        self.backend = LocalBackend(self.encoder, EdgeStore(top / "qdrant"))

    def write(self, **files: str) -> None:
        for name, content in files.items():
            path = self.top / f"{name.replace('__', '/')}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.encode())

    def remove(self, *names: str) -> None:
        for name in names:
            (self.top / f"{name}.png").unlink()

    def run(
        self, *given: object, prune: bool = False, dao_id: str = "me", **options: Any
    ) -> Report:
        sources = find_sources([str(name) for name in given or (self.top,)], (), **options)
        hashed, failures = hash_sources(sources, 4, ignore)
        held = hold(self.backend, "c", dao_id)
        plan = make_plan(hashed, held, sources.is_gone if prune else never)
        report = carry_out(plan, self.backend, "c", dao_id, 4, ignore)
        report.failures = sources.failures + failures + report.failures
        return report

    def held(self, dao_id: str = "me") -> dict[str, list[str]]:
        """Return for each picture, by its first name, all its names."""
        listed = {}
        for image in self.backend.images("c", dao_id=dao_id):
            paths = [image.path, *image.payload.get("duplicates", ())]
            names = [str(Path(path).relative_to(self.top).with_suffix("")) for path in paths]
            listed[names[0]] = names
        return listed

    def payload(self, name: str) -> dict[str, Any]:
        path = str(self.top / f"{name}.png")
        (payload,) = (
            image.payload
            for image in self.backend.images("c")
            if path in (image.path, *image.payload.get("duplicates", ()))
        )
        return payload


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    library = Library(tmp_path)
    yield library
    library.backend.close()


def counts(report: Report) -> tuple[int, int, int, int]:
    return report.indexed, report.updated, report.unchanged, report.forgotten


def test_what_is_indexed_is_skipped_and_what_is_new_is_added(library: Library) -> None:
    library.write(a="A", b="B")
    assert counts(library.run()) == (2, 0, 0, 0)
    assert counts(library.run()) == (0, 0, 2, 0)
    library.write(c_d="C")
    assert counts(library.run()) == (1, 0, 2, 0)
    assert library.encoder.embedded.count(b"A") == 1
    assert library.payload("c_d")["title"] == "c d"


def test_the_same_picture_in_several_places_is_one_with_all_its_paths(library: Library) -> None:
    library.write(b="A", a="A", sub__c="A")
    report = library.run()
    assert (counts(report), report.duplicates) == ((1, 0, 0, 0), 2)
    assert library.held() == {"a": ["a", "b", "sub/c"]}
    library.write(d="A")
    assert counts(library.run()) == (0, 1, 0, 0)
    assert library.held() == {"a": ["a", "b", "d", "sub/c"]}
    assert library.encoder.embedded == [b"A"]


def test_a_changed_file_replaces_the_picture_that_it_was(library: Library) -> None:
    library.write(a="old", b="B")
    library.run(library.top, tags=["holiday"])
    library.write(a="new")
    assert counts(library.run()) == (1, 0, 1, 1)
    assert library.held() == {"a": ["a"], "b": ["b"]}
    assert library.payload("a")["tags"] == ["holiday"]  # what was known of the file stays


def test_a_changed_duplicate_leaves_the_others(library: Library) -> None:
    library.write(a="A", b="A", c="A")
    library.run()
    library.write(a="new")
    assert counts(library.run()) == (1, 1, 0, 0)
    assert library.held() == {"a": ["a"], "b": ["b", "c"]}
    assert library.encoder.embedded == [b"A", b"new"]


def test_a_renamed_file_is_not_embedded_again(library: Library) -> None:
    library.write(a="A")
    library.run()
    (library.top / "a.png").rename(library.top / "z.png")
    assert counts(library.run(prune=True)) == (0, 1, 0, 0)
    assert library.held() == {"z": ["z"]}
    assert library.payload("z")["title"] == "z"
    assert library.encoder.embedded == [b"A"]


def test_what_is_gone_is_forgotten_when_asked_and_only_there(library: Library) -> None:
    library.write(a="A", b="B", dup="B", sub__c="C", sub__d="D")
    library.run()
    library.remove("a", "dup", "sub/c")
    assert counts(library.run()) == (0, 0, 2, 0)
    assert len(library.held()) == 4
    assert counts(library.run(library.top / "sub", prune=True)) == (0, 0, 1, 1)
    assert library.held() == {"a": ["a"], "b": ["b", "dup"], "sub/d": ["sub/d"]}
    assert counts(library.run(prune=True)) == (0, 1, 1, 1)
    assert library.held() == {"b": ["b"], "sub/d": ["sub/d"]}


def test_an_empty_folder_forgets_nothing(library: Library) -> None:
    library.write(a="A", sub__b="B")
    library.run()
    library.remove("a", "sub/b")
    assert counts(library.run(prune=True)) == (0, 0, 0, 0)  # a disk that is away looks like that
    library.write(c="C")
    (library.top / "disk").symlink_to("/nowhere")
    report = library.run(prune=True)
    assert (counts(report), len(report.failures)) == ((1, 0, 0, 0), 1)
    (library.top / "disk").unlink()
    assert counts(library.run(prune=True)) == (0, 0, 1, 1)
    assert library.held().keys() == {"c", "sub/b"}  # so does a folder below, when it is empty
    (library.top / "sub").rmdir()
    assert counts(library.run(prune=True)) == (0, 0, 1, 1)
    assert library.held().keys() == {"c"}


def test_a_picture_that_somebody_named_keeps_its_id(library: Library) -> None:
    library.write(a="A", b="B")
    manifest = library.top / "m.jsonl"
    manifest.write_text('{"path": "a.png", "id": "42", "caption": "a cat"}\n')
    library.run(manifest)
    for _ in range(2):
        library.run()
        library.run(manifest)
    assert {image.id for image in library.backend.images("c")} > {"42"}
    assert library.encoder.embedded == [b"A", b"B"]
    library.write(a="new")
    library.run()
    payload = library.payload("a")
    assert (payload["image_id"], payload["caption"]) == ("42", "a cat")
    assert len(library.held()) == 2


def test_a_named_picture_that_moves_lies_where_it_is_now(library: Library) -> None:
    library.write(a="A", b="B")
    manifest = library.top / "m.jsonl"
    manifest.write_text('{"path": "a.png", "id": "42"}\n')
    library.run(manifest)
    manifest.write_text('{"path": "b.png", "id": "42"}\n')
    library.run(manifest)
    assert library.held() == {"b": ["b"]}


def test_a_named_picture_keeps_its_name_where_its_file_moves(library: Library) -> None:
    library.write(a="A")
    manifest = library.top / "m.jsonl"
    manifest.write_text('{"path": "a.png", "id": "42", "caption": "a cat", "tags": ["t"]}\n')
    library.run(manifest)
    (library.top / "a.png").rename(library.top / "b.png")
    assert counts(library.run(prune=True)) == (0, 1, 0, 0)
    assert library.held() == {"b": ["b"]}
    payload = library.payload("b")
    assert (payload["image_id"], payload["caption"], payload["tags"]) == ("42", "a cat", ["t"])
    library.write(a="A", c="A")
    library.run()
    assert library.held() == {"a": ["a", "b", "c"]}  # a copy is another place of it
    library.write(a="new", b="new", c="newer")
    library.run()
    assert {name: library.payload(name)["image_id"] == "42" for name in "abc"} == {
        "a": True,
        "b": True,
        "c": False,
    }
    assert library.encoder.embedded == [b"A", b"new", b"newer"]


def test_an_id_that_a_manifest_gives_is_not_another_files(library: Library) -> None:
    library.write(a="A", z="Z")
    manifest = library.top / "m.jsonl"
    for name in "azz":
        manifest.write_text(json.dumps({"path": f"{name}.png", "id": "42"}))
        library.run(library.top, manifest)
    assert library.payload("z")["image_id"] == "42"
    assert library.held() == {"a": ["a"], "z": ["z"]}


def test_a_manifest_may_name_a_picture_anew(library: Library) -> None:
    library.write(a="A")
    manifest = library.top / "m.jsonl"
    for image_id in "12":
        manifest.write_text(json.dumps({"path": "a.png", "id": image_id}))
        library.run(library.top, manifest)
    assert [image.id for image in library.backend.images("c")] == ["2"]


def test_of_a_named_pictures_places_those_that_still_show_it_keep_its_name(
    library: Library,
) -> None:
    library.write(a="A", b="A")
    places = [str(library.top / f"{name}.png") for name in "ab"]
    library.backend.index([Picture("7", b"A", places[0], "me", {}, places[1:])], "c")
    library.write(a="new")
    library.run()
    assert library.held() == {"a": ["a"], "b": ["b"]}
    assert library.payload("b")["image_id"] == "7"


def test_what_is_known_of_a_file_that_moves_does_not_stay_for_what_comes_there(
    library: Library,
) -> None:
    library.write(a="A")
    manifest = library.top / "m.jsonl"
    manifest.write_text('{"path": "a.png", "caption": "my cat"}\n')
    library.run(manifest)
    (library.top / "a.png").rename(library.top / "b.png")
    library.write(a="new")
    library.run()
    assert library.payload("b")["caption"] == "my cat"
    assert "caption" not in library.payload("a")


@pytest.mark.parametrize("image_id", [{}, {"id": "1"}])
@pytest.mark.parametrize("folder_first", [False, True])
def test_what_is_said_of_one_file_several_times_adds_up(
    library: Library, image_id: dict[str, str], folder_first: bool
) -> None:
    library.write(a="A", **{f"p{n}": f"{n}" for n in range(20)})
    manifest = library.top / "m.jsonl"
    lines = [
        {"path": "a.png", "tags": ["cat"], "caption": "first", **image_id},
        {"path": "a.png", "tags": ["red"], "caption": "second", "category": "pets"},
    ]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = (library.top, manifest) if folder_first else (manifest, library.top)
    library.run(*given, tags=["x"])
    payload = library.payload("a")
    assert sorted(payload["tags"]) == ["cat", "red", "x"]
    assert (payload["caption"], payload["category"]) == ("second", "pets")
    assert counts(library.run(*given, tags=["x"])) == (0, 0, 21, 0)


def test_a_file_that_was_named_twice_keeps_both_names(library: Library) -> None:
    library.write(a="A", b="B")
    manifest = library.top / "m.jsonl"
    manifest.write_text('{"path": "a.png", "id": "1"}\n{"path": "a.png", "id": "2"}\n')
    assert counts(library.run(manifest)) == (2, 0, 0, 0)
    assert counts(library.run()) == (1, 0, 2, 0)
    assert {"1", "2"} < {image.id for image in library.backend.images("c")}


def test_a_folder_and_the_manifest_of_its_files_are_one_source(library: Library) -> None:
    library.write(a="A", b="B", c="C")
    manifest = library.top / "m.jsonl"
    manifest.write_text(
        '{"path": "a.png", "id": "1"}\n{"path": "b.png", "caption": "a cat", "tags": ["x"]}\n'
    )
    assert counts(library.run(library.top, manifest)) == (3, 0, 0, 0)
    assert counts(library.run(manifest, library.top)) == (0, 0, 3, 0)
    assert library.payload("a")["image_id"] == "1"
    assert (library.payload("b")["caption"], library.payload("b")["tags"]) == ("a cat", ["x"])


def test_a_place_of_a_named_picture_that_changed_is_a_picture_of_its_own(library: Library) -> None:
    library.write(a="A", b="A")
    places = [str(library.top / f"{name}.png") for name in "ab"]
    library.backend.index([Picture("7", b"A", places[0], "me", {}, places[1:])], "c")
    library.write(b="B")
    library.run()
    assert library.held() == {"a": ["a"], "b": ["b"]}
    assert library.payload("a")["image_id"] == "7"
    library.backend.index([Picture("8", b"C", "", "me", {})], "c")
    library.write(a="A", b="A")
    library.run()
    library.write(b="C")
    library.run(prune=True)
    assert library.payload("b")["image_id"] == "8"  # or another that somebody named


def test_the_first_place_gives_the_title(library: Library) -> None:
    library.write(x__a="A", y__b="A", y__c="A")
    library.run()
    assert library.payload("x/a")["title"] == "a"
    library.write(x__a="new")
    library.run(library.top / "x")
    assert library.payload("y/b")["title"] == "b"


def test_what_is_new_is_written_before_anything_old_is_taken_away(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write(a="A", z="A")
    library.run()
    library.write(z="new")
    done: list[str] = []
    index, update = library.backend.index, library.backend.update

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.1)
        outcome = index(*args, **kwargs)
        done.append("written")
        return outcome

    def taking(*args: Any, **kwargs: Any) -> Any:
        done.append("taken")
        return update(*args, **kwargs)

    monkeypatch.setattr(library.backend, "index", slow)
    monkeypatch.setattr(library.backend, "update", taking)
    assert counts(library.run()) == (1, 1, 0, 0)
    assert done == ["written", "taken"]


def test_what_cannot_be_looked_at_is_not_gone(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write(a="A", b="B", sub__c="C")
    library.run()
    library.remove("a", "sub/c")
    lstat = os.lstat

    def refusing(path: Any, **options: Any) -> os.stat_result:  # as root, nothing is refused
        if str(path).endswith("c.png"):
            raise PermissionError(13, "Permission denied", path)
        return lstat(path, **options)

    monkeypatch.setattr(os, "lstat", refusing)
    assert counts(library.run(prune=True)) == (0, 0, 1, 1)
    assert library.held() == {"b": ["b"], "sub/c": ["sub/c"]}


def test_a_path_is_taken_also_where_no_file_is_left(library: Library) -> None:
    library.write(x__a="A", y__b="A")
    library.run()
    (library.top / "y" / "b.png").unlink()
    library.write(x__a="new")
    assert counts(library.run(library.top / "x")) == (1, 0, 0, 0)
    assert library.held() == {"x/a": ["x/a"], "y/b": ["y/b"]}


def test_another_tenants_pictures_are_left_alone(library: Library) -> None:
    library.write(a="A")
    library.run()
    library.run(dao_id="other")
    library.remove("a")
    library.write(b="B")
    assert counts(library.run(prune=True)) == (1, 0, 0, 1)
    assert library.held("other") == {"a": ["a"]}


def test_runs_over_different_folders_do_not_undo_each_other(library: Library) -> None:
    library.write(x__a="A", y__b="A")
    for name, tags in (("x", ["one"]), ("y", ["two"])):
        library.run(library.top / name, tags=tags)
    assert library.held() == {"x/a": ["x/a", "y/b"]}
    assert library.payload("x/a")["tags"] == ["one", "two"]
    for name in ("x", "y", "x"):
        assert counts(library.run(library.top / name)) == (0, 0, 1, 0)


def test_tags_and_captions_are_brought_up_to_date_without_embedding(library: Library) -> None:
    library.write(a="A")
    library.run()
    assert counts(library.run(library.top, tags=["t"])) == (0, 1, 0, 0)
    manifest = library.top / "m.jsonl"
    manifest.write_text('{"path": "a.png", "caption": "a cat", "title": "Cat"}\n')
    assert counts(library.run(manifest)) == (0, 1, 0, 0)
    payload = library.payload("a")
    assert (payload["title"], payload["caption"], payload["tags"]) == ("Cat", "a cat", ["t"])
    assert library.encoder.embedded == [b"A"]


def test_a_manifest_names_pictures_and_a_changed_one_keeps_its_name(library: Library) -> None:
    library.write(a="A", b="A")
    manifest = library.top / "m.jsonl"
    manifest.write_text('{"path": "a.png", "id": "1"}\n{"path": "b.png", "id": "2"}\n')
    assert counts(library.run(manifest)) == (2, 0, 0, 0)
    assert counts(library.run(manifest)) == (0, 0, 2, 0)
    library.write(a="new")
    assert counts(library.run(manifest)) == (1, 0, 1, 0)
    assert {image.id for image in library.backend.images("c")} == {"1", "2"}


def test_of_a_picture_that_cannot_be_indexed_all_places_are_told(library: Library) -> None:
    library.write(a="broken", b="broken", c="C")
    report = library.run()
    assert [Path(failure.path).name for failure in report.failures] == ["a.png", "b.png"]


def test_a_file_that_cannot_be_indexed_costs_the_others_nothing(library: Library) -> None:
    library.write(a="A", b="broken", c="")
    report = library.run()
    assert counts(report) == (1, 0, 0, 0)
    assert [(Path(f.path).name, f.why) for f in report.failures] == [
        ("c.png", "the file is empty"),
        ("b.png", "these bytes are not a picture"),
    ]


def test_of_several_pictures_only_what_is_new_is_embedded(library: Library) -> None:
    def some(*wanted: tuple[int, str], note: int = 0) -> list[Picture]:
        return [Picture(f"{i}", d.encode(), f"/{i}", "me", {"note": note}) for i, d in wanted]

    index = partial(library.backend.index, collection="c")
    assert index(some((0, "A"), (1, "B"))) == ["indexed"] * 2
    mixed = [*some((2, "C")), *some((0, "A"), note=1), *some((1, "new"), (3, "new"))]
    assert index(mixed) == ["indexed", "updated", "indexed", "indexed"]
    assert index(mixed) == ["unchanged"] * 4
    assert library.encoder.embedded == [b"A", b"B", b"C", b"new", b"new"]
    held = {image.id: image.payload["note"] for image in library.backend.images("c")}
    assert held == {"0": 1, "1": 0, "2": 0, "3": 0}
    for data, ids in {b"A": {"0"}, b"C": {"2"}, b"new": {"1", "3"}}.items():
        found = library.backend.search(SearchRequest(image=image_example(data), collection="c"))
        assert {hit.id for hit in found.hits if hit.score > 0.999} == ids


def test_of_a_batch_only_what_cannot_be_indexed_is_left_out(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library.backend, "batch", 4)
    library.write(a="A", b="broken 1", c="C", d="D", e="E", f="F", g="broken 2", h="H")
    manifest = library.top / "m.jsonl"
    lines = [
        {"path": f"{name}.png", "metadata": {"size": 2**64 if name == "e" else 1}}
        for name in "abcdefgh"
    ]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = library.run(manifest)
    assert counts(report) == (5, 0, 0, 0)
    assert [(Path(f.path).name, f.why[:20]) for f in report.failures] == [
        ("b.png", "these bytes are not "),
        ("e.png", "the payload of point"),
        ("g.png", "these bytes are not "),
    ]
    assert library.held().keys() == set("acdfh")
    assert sorted(library.encoder.embedded) == [b"A", b"C", b"D", b"F", b"H"]


@pytest.mark.parametrize("again", ["update", "index"])
def test_what_is_written_meanwhile_keeps_payload_and_vector_together(
    library: Library, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    old, new = (Picture("1", data, "/1", "me", {"note": 1}) for data in (b"A", b"B"))
    index = partial(library.backend.index, collection="c")
    index([old])
    other = threading.Thread(target=index, args=([new],))
    retrieve = EdgeCollection.retrieve

    def looked_up(*args: Any, **options: Any) -> Any:
        found = retrieve(*args, **options)
        if threading.current_thread() is not other:
            other.start()
            other.join(0.5)  # it has to wait for what is done with what was found
        return found

    with monkeypatch.context() as patch:
        patch.setattr(EdgeCollection, "retrieve", looked_up)
        if again == "index":
            index([replace(old, metadata={"note": 2})])
        else:
            library.backend.update("1", "me", "c", metadata={"note": 2})
        other.join()
    (held,) = library.backend.images("c")
    assert (held.payload["content_hash"], held.payload["note"]) == (new.content_hash, 1)
    found = library.backend.search(SearchRequest(image=image_example(b"B"), collection="c"))
    assert found.hits[0].score == pytest.approx(1)


@pytest.mark.parametrize(("batch", "calls", "largest"), [(4, 3, 4), (12, 1, 12), (20, 1, 12)])
def test_no_more_pictures_are_under_way_than_workers(
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
                together.wait(5)  # until so many are there: no fewer than workers either
            together.abort()
        try:
            return index(pictures, **more)
        finally:
            with lock:
                under_way -= len(pictures)

    monkeypatch.setattr(library.backend, "index", watched)
    report = carry_out(make_plan(hashed, []), library.backend, "c", "me", 12, ignore)
    assert (counts(report), most) == ((50, 0, 0, 0), 12)


def test_a_picture_that_breaks_stays_findable_as_it_was(library: Library) -> None:
    library.write(a="A")
    library.run()
    library.write(a="broken now")
    report = library.run()
    assert (counts(report), len(report.failures)) == ((0, 0, 0, 0), 1)
    assert library.held() == {"a": ["a"]}
    library.write(b="B")
    library.run()
    library.write(b="broken now")  # the same bytes as the other
    assert counts(library.run()) == (0, 0, 0, 0)
    assert library.held() == {"a": ["a"], "b": ["b"]}


def test_a_disk_that_fails_while_it_is_read_costs_one_picture(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write(a="A", b="B")

    def failing(file: Any, name: str) -> Any:
        if file.name.endswith("b.png"):
            raise OSError(5, "Input/output error")
        return file_digest(file, name)

    monkeypatch.setattr("rag.indexing.run.file_digest", failing)
    report = library.run()
    assert counts(report) == (1, 0, 0, 0)
    assert [failure.why for failure in report.failures] == ["cannot be read: Input/output error"]


def test_what_somebody_deletes_meanwhile_is_embedded_again(library: Library) -> None:
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


def test_a_file_that_changes_meanwhile_is_told_and_indexed_by_the_next_run(
    library: Library,
) -> None:
    library.write(a="A")
    sources = find_sources([str(library.top)], ())
    hashed, _ = hash_sources(sources, 1, ignore)
    library.write(a="new")
    report = carry_out(make_plan(hashed, []), library.backend, "c", "me", 1, ignore)
    assert [failure.why for failure in report.failures] == [
        "has changed since it was looked at: run again"
    ]
    assert counts(library.run()) == (1, 0, 0, 0)
    assert library.encoder.embedded == [b"new"]


def test_what_concerns_all_stops_the_run_and_the_next_one_goes_on(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write(**{f"p{n}": f"{n}" for n in range(20)})
    index = library.backend.index
    left = threading.Semaphore(5)  # calls, each with two pictures

    def failing(*args: Any, **kwargs: Any) -> Any:
        if not left.acquire(blocking=False):
            raise StoreFull("the disk has 3 MB free")
        return index(*args, **kwargs)

    monkeypatch.setattr(library.backend, "index", failing)
    with pytest.raises(StoreFull, match="3 MB free"):
        library.run()
    monkeypatch.setattr(library.backend, "index", index)
    assert counts(library.run()) == (10, 0, 10, 0)
    assert len(library.encoder.embedded) == 20


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (Busy("busy", retry_after=7), [7.0, 7.0, 7.0, 8.0, 15.0, 15.0, 15.0]),
        (Busy("busy", retry_after=700), [15.0] * 4),
        (
            VisionEncoderConnectionError("away", code="unreachable"),
            [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0],
        ),
        (StoreUnavailable("down"), [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]),
        (StoreFull("3 MB free"), []),
        (ValueError("a bug"), []),
    ],
)
def test_a_busy_service_is_waited_for_and_not_for_ever(
    error: Exception, waits: list[float]
) -> None:
    slept: list[float] = []

    def failing() -> None:
        raise error

    with pytest.raises(type(error)):
        patiently(failing, sleep=slept.append)
    assert slept == waits
    answers = iter([Busy("busy"), "done"])

    def once() -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(once, sleep=slept.append) == "done"


def test_who_stops_does_not_wait_for_a_busy_service() -> None:
    stop = threading.Event()
    stop.set()
    asked: list[int] = []

    def failing() -> None:
        asked.append(1)
        raise Busy("busy")

    with pytest.raises(Busy):
        patiently(failing, sleep=stop.wait)
    assert len(asked) == 1
    stop.clear()
    running = each(str, range(100), 2, stop)
    next(running)
    running.close()  # as when the run fails, or Ctrl-C is pressed
    assert stop.is_set()
    stop.clear()
    assert len(list(each(str, range(9), 2, stop))) == 9
    assert not stop.is_set()


@pytest.mark.parametrize("tags", [None, "cat", 7])
def test_tags_that_somebody_else_wrote_are_no_obstacle(library: Library, tags: Any) -> None:
    library.write(a="A")
    path = library.top / "a.png"
    other = Picture("42", path.read_bytes(), str(path), "me", {"tags": tags})
    library.backend.index([other], "c")
    library.run(library.top, tags=["t"])
    assert library.payload("a")["tags"] == (["cat", "t"] if tags == "cat" else ["t"])


def test_what_is_no_file_does_not_hang_the_run(library: Library) -> None:
    os.mkfifo(library.top / "pipe.png")
    library.write(a="A")
    assert counts(library.run()) == (1, 0, 0, 0)
    (failure,) = library.run(library.top / "pipe.png").failures
    assert failure.why == "is not a file"


def test_a_file_larger_than_any_service_takes_is_not_read(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.indexing.run.LARGEST_FILE", 3)
    library.write(a="A", b="large")
    report = library.run()
    assert [f.why for f in report.failures] == ["has 5 bytes; at most 3 are read"]


def test_near_duplicates_come_in_groups_closest_first(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    def along(data: bytes) -> Any:
        """Return a vector of angle `data` degrees in a plane, or across it."""
        angle = np.radians(float(data))
        return np.array([np.cos(angle), np.sin(angle), *[0.0] * 14], np.float32)

    monkeypatch.setattr("tests.support.fakes.vector_of", along)
    library.write(a="0", b="4", c="8", d="50", e="51", f="120", g="200", twin="200")
    library.run()
    groups = near_duplicates(library.backend, "c", "me", 0.995, ignore)
    named = [
        (round(group.score, 4), sorted(Path(image.path).stem for image in group.images))
        for group in groups
    ]
    assert named == [
        (1.0, ["g"]),
        (0.9998, ["d", "e"]),
        (0.9976, ["a", "b", "c"]),  # a and c are alike through b only
    ]
