"""Indexing folders: what a run adds, updates, keeps and deletes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bento.contract.search import image_example
from rag import Picture, SearchRequest
from rag.indexing.duplicates import near_duplicates
from tests.support.rag.engines import quick_folder
from tests.support.rag.fakes import FakeEncoder
from tests.support.rag.library import Library, counts, ignore


def test_a_run_skips_indexed_pictures_and_adds_new_ones(library: Library) -> None:
    library.write(a="A", b="B")
    assert counts(library.run()) == (2, 0, 0, 0)
    assert counts(library.run()) == (0, 0, 2, 0)
    library.write(c_d="C")
    assert counts(library.run()) == (1, 0, 2, 0)
    assert library.encoder.embedded.count(b"A") == 1
    assert library.payload("c_d")["title"] == "c d"


def test_copies_are_one_picture_with_all_their_paths(library: Library) -> None:
    library.write(b="A", a="A", sub__c="A")
    report = library.run()
    assert (counts(report), report.duplicates) == ((1, 0, 0, 0), 2)
    assert library.held() == {"a": ["a", "b", "sub/c"]}
    library.write(d="A")
    assert counts(library.run()) == (0, 1, 0, 0)
    assert library.held() == {"a": ["a", "b", "d", "sub/c"]}
    assert library.encoder.embedded == [b"A"]


def test_a_changed_file_replaces_its_picture_and_keeps_its_tags(library: Library) -> None:
    library.write(a="old", b="B")
    library.run(library.top, tags=["holiday"])
    library.write(a="new")
    assert counts(library.run()) == (1, 0, 1, 1)
    assert library.held() == {"a": ["a"], "b": ["b"]}
    assert library.payload("a")["tags"] == ["holiday"]


def test_a_changed_copy_does_not_affect_the_other_copies(library: Library) -> None:
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


def test_prune_deletes_missing_pictures_of_the_given_folder_only(library: Library) -> None:
    library.write(a="A", b="B", dup="B", sub__c="C", sub__d="D")
    library.run()
    library.remove("a", "dup", "sub/c")
    assert counts(library.run()) == (0, 0, 2, 0)
    assert len(library.held()) == 4
    assert counts(library.run(library.top / "sub", prune=True)) == (0, 0, 1, 1)
    assert library.held() == {"a": ["a"], "b": ["b", "dup"], "sub/d": ["sub/d"]}
    assert counts(library.run(prune=True)) == (0, 1, 1, 1)
    assert library.held() == {"b": ["b"], "sub/d": ["sub/d"]}


def test_prune_keeps_the_pictures_of_an_empty_folder(library: Library) -> None:
    library.write(a="A", sub__b="B")
    library.run()
    library.remove("a", "sub/b")
    assert counts(library.run(prune=True)) == (0, 0, 0, 0)  # like an unmounted disk
    library.write(c="C")
    (library.top / "disk").symlink_to("/nowhere")
    report = library.run(prune=True)
    assert (counts(report), len(report.failures)) == ((1, 0, 0, 0), 1)
    (library.top / "disk").unlink()
    assert counts(library.run(prune=True)) == (0, 0, 1, 1)
    assert library.held().keys() == {"c", "sub/b"}  # the subfolder is empty, too
    (library.top / "sub").rmdir()
    assert counts(library.run(prune=True)) == (0, 0, 1, 1)
    assert library.held().keys() == {"c"}


def test_the_first_path_gives_the_title(library: Library) -> None:
    library.write(x__a="A", y__b="A", y__c="A")
    library.run()
    assert library.payload("x/a")["title"] == "a"
    library.write(x__a="new")
    library.run(library.top / "x")
    assert library.payload("y/b")["title"] == "b"


def test_prune_keeps_a_picture_whose_file_cannot_be_accessed(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write(a="A", b="B", sub__c="C")
    library.run()
    library.remove("a", "sub/c")
    lstat = os.lstat

    def refusing(path: Any, **options: Any) -> os.stat_result:  # the tests may run as root
        if str(path).endswith("c.png"):
            raise PermissionError(13, "Permission denied", path)
        return lstat(path, **options)

    monkeypatch.setattr(os, "lstat", refusing)
    assert counts(library.run(prune=True)) == (0, 0, 1, 1)
    assert library.held() == {"b": ["b"], "sub/c": ["sub/c"]}


def test_a_changed_copy_loses_its_path_even_if_the_other_file_is_missing(library: Library) -> None:
    library.write(x__a="A", y__b="A")
    library.run()
    (library.top / "y" / "b.png").unlink()
    library.write(x__a="new")
    assert counts(library.run(library.top / "x")) == (1, 0, 0, 0)
    assert library.held() == {"x/a": ["x/a"], "y/b": ["y/b"]}


def test_a_run_does_not_touch_another_tenants_pictures(library: Library) -> None:
    library.write(a="A")
    library.run()
    library.run(dao_id="other")
    library.remove("a")
    library.write(b="B")
    assert counts(library.run(prune=True)) == (1, 0, 0, 1)
    assert library.held("other") == {"a": ["a"]}


def test_runs_over_folders_that_share_a_picture_do_not_undo_each_other(library: Library) -> None:
    library.write(x__a="A", y__b="A")
    for name, tags in (("x", ["one"]), ("y", ["two"])):
        library.run(library.top / name, tags=tags)
    assert library.held() == {"x/a": ["x/a", "y/b"]}
    assert library.payload("x/a")["tags"] == ["one", "two"]
    for name in ("x", "y", "x"):
        assert counts(library.run(library.top / name)) == (0, 0, 1, 0)


def test_only_new_pictures_of_a_batch_are_embedded(library: Library) -> None:
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
        found = library.backend.search(SearchRequest(image=[image_example(data)], collection="c"))
        assert {hit.id for hit in found.hits if hit.score > 0.999} == ids


def test_near_duplicates_are_grouped_closest_first(tmp_path: Path) -> None:
    def at_angle(data: bytes) -> Any:
        """Return the unit vector at an angle of `data` degrees in a plane."""
        angle = np.radians(float(data))
        return np.array([np.cos(angle), np.sin(angle), *[0.0] * 14], np.float32)

    with quick_folder(tmp_path) as folder:
        library = Library(folder, FakeEncoder(vector_of=at_angle))
        library.write(a="0", b="4", c="8", d="50", e="51", f="120", g="200", twin="200")
        library.run()
        groups = near_duplicates(library.backend, "c", "me", 0.995, ignore)
        library.backend.close()
    named = [
        (round(group.score, 4), sorted(Path(image.path).stem for image in group.images))
        for group in groups
    ]
    assert named == [
        (1.0, ["g"]),
        (0.9998, ["d", "e"]),
        (0.9976, ["a", "b", "c"]),  # a and c are similar only through b
    ]
