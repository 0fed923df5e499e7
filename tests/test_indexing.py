"""Indexing files: what a run adds, updates, leaves, forgets, and what it says of failures."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bento.errors import Busy
from rag import LocalBackend, Picture
from rag.edge import EdgeStore
from rag.errors import StoreUnavailable
from rag.indexing import Report, carry_out, each, hash_sources, hold, patiently
from rag.near import near_duplicates
from rag.plan import make_plan
from rag.sources import find_sources
from router_client import VisionEncoderConnectionError

from .fakes import FakeEncoder


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
        plan = make_plan(hashed, held, sources.folders if prune else ())
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
    assert counts(library.run(prune=True)) == (0, 0, 1, 2)


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


def test_a_file_that_cannot_be_indexed_costs_the_others_nothing(library: Library) -> None:
    library.write(a="A", b="broken", c="")
    report = library.run()
    assert counts(report) == (1, 0, 0, 0)
    assert [(Path(f.path).name, f.why) for f in report.failures] == [
        ("c.png", "the file is empty"),
        ("b.png", "these bytes are not a picture"),
    ]


def test_a_picture_that_breaks_stays_findable_as_it_was(library: Library) -> None:
    library.write(a="A")
    library.run()
    library.write(a="broken now")
    report = library.run()
    assert (counts(report), len(report.failures)) == ((0, 0, 0, 0), 1)
    assert library.held() == {"a": ["a"]}


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
    left = threading.Semaphore(5)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if not left.acquire(blocking=False):
            raise StoreUnavailable("the disk has 3 MB free")
        return index(*args, **kwargs)

    monkeypatch.setattr(library.backend, "index", failing)
    with pytest.raises(StoreUnavailable, match="3 MB free"):
        library.run()
    monkeypatch.setattr(library.backend, "index", index)
    assert counts(library.run()) == (15, 0, 5, 0)
    assert len(library.encoder.embedded) == 20


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (Busy("busy", retry_after=7), [7.0, 7.0, 7.0, 8.0, 15.0, 15.0, 15.0]),
        (Busy("busy", retry_after=700), [15.0] * 4),
        (VisionEncoderConnectionError("away"), [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]),
        (StoreUnavailable("down"), []),
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


@pytest.mark.parametrize("tags", [None, "cat", 7])
def test_tags_that_somebody_else_wrote_are_no_obstacle(library: Library, tags: Any) -> None:
    library.write(a="A")
    path = library.top / "a.png"
    other = Picture("42", path.read_bytes(), str(path), "me", {"tags": tags})
    library.backend.index(other, "c")
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
    monkeypatch.setattr("rag.indexing.LARGEST_FILE", 3)
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

    monkeypatch.setattr("tests.fakes.vector_of", along)
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
