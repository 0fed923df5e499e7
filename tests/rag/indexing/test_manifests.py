"""Indexing with manifests: a picture that moves or changes keeps its id, caption and tags."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rag import Picture
from tests.support.rag.library import Library, counts


def test_a_picture_keeps_the_id_from_a_manifest(library: Library) -> None:
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


def test_a_manifest_can_move_an_id_to_another_path(library: Library) -> None:
    library.write(a="A", b="B")
    manifest = library.top / "m.jsonl"
    manifest.write_text('{"path": "a.png", "id": "42"}\n')
    library.run(manifest)
    manifest.write_text('{"path": "b.png", "id": "42"}\n')
    library.run(manifest)
    assert library.held() == {"b": ["b"]}


def test_a_picture_with_a_given_id_keeps_it_when_its_file_moves(library: Library) -> None:
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
    assert library.held() == {"a": ["a", "b", "c"]}  # a copy adds a path
    library.write(a="new", b="new", c="newer")
    library.run()
    assert {name: library.payload(name)["image_id"] == "42" for name in "abc"} == {
        "a": True,
        "b": True,
        "c": False,
    }
    assert library.encoder.embedded == [b"A", b"new", b"newer"]


def test_an_id_can_move_to_another_file_and_stay_there(library: Library) -> None:
    library.write(a="A", z="Z")
    manifest = library.top / "m.jsonl"
    for name in "azz":
        manifest.write_text(json.dumps({"path": f"{name}.png", "id": "42"}))
        library.run(library.top, manifest)
    assert library.payload("z")["image_id"] == "42"
    assert library.held() == {"a": ["a"], "z": ["z"]}


def test_a_manifest_can_change_the_id_of_a_picture(library: Library) -> None:
    library.write(a="A")
    manifest = library.top / "m.jsonl"
    for image_id in "12":
        manifest.write_text(json.dumps({"path": "a.png", "id": image_id}))
        library.run(library.top, manifest)
    assert [image.id for image in library.backend.images("c")] == ["2"]


def test_unchanged_paths_of_a_picture_keep_its_id(
    library: Library,
) -> None:
    library.write(a="A", b="A")
    paths = [str(library.top / f"{name}.png") for name in "ab"]
    library.backend.index([Picture("7", b"A", paths[0], "me", {}, paths[1:])], "c")
    library.write(a="new")
    library.run()
    assert library.held() == {"a": ["a"], "b": ["b"]}
    assert library.payload("b")["image_id"] == "7"


def test_a_new_file_at_an_old_path_does_not_inherit_the_metadata(
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
def test_several_manifest_lines_for_one_file_add_up(
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


def test_a_file_with_two_ids_keeps_both(library: Library) -> None:
    library.write(a="A", b="B")
    manifest = library.top / "m.jsonl"
    manifest.write_text('{"path": "a.png", "id": "1"}\n{"path": "a.png", "id": "2"}\n')
    assert counts(library.run(manifest)) == (2, 0, 0, 0)
    assert counts(library.run()) == (1, 0, 2, 0)
    assert {"1", "2"} < {image.id for image in library.backend.images("c")}


def test_a_folder_and_the_manifest_of_its_files_can_be_given_together(library: Library) -> None:
    library.write(a="A", b="B", c="C")
    manifest = library.top / "m.jsonl"
    manifest.write_text(
        '{"path": "a.png", "id": "1"}\n{"path": "b.png", "caption": "a cat", "tags": ["x"]}\n'
    )
    assert counts(library.run(library.top, manifest)) == (3, 0, 0, 0)
    assert counts(library.run(manifest, library.top)) == (0, 0, 3, 0)
    assert library.payload("a")["image_id"] == "1"
    assert (library.payload("b")["caption"], library.payload("b")["tags"]) == ("a cat", ["x"])


def test_a_changed_copy_becomes_a_picture_of_its_own(library: Library) -> None:
    library.write(a="A", b="A")
    paths = [str(library.top / f"{name}.png") for name in "ab"]
    library.backend.index([Picture("7", b"A", paths[0], "me", {}, paths[1:])], "c")
    library.write(b="B")
    library.run()
    assert library.held() == {"a": ["a"], "b": ["b"]}
    assert library.payload("a")["image_id"] == "7"
    library.backend.index([Picture("8", b"C", "", "me", {})], "c")
    library.write(a="A", b="A")
    library.run()
    library.write(b="C")
    library.run(prune=True)
    assert library.payload("b")["image_id"] == "8"  # the picture with this content had the id 8


def test_copies_can_have_different_ids_and_keep_them_when_they_change(library: Library) -> None:
    library.write(a="A", b="A")
    manifest = library.top / "m.jsonl"
    manifest.write_text('{"path": "a.png", "id": "1"}\n{"path": "b.png", "id": "2"}\n')
    assert counts(library.run(manifest)) == (2, 0, 0, 0)
    assert counts(library.run(manifest)) == (0, 0, 2, 0)
    library.write(a="new")
    assert counts(library.run(manifest)) == (1, 0, 1, 0)
    assert {image.id for image in library.backend.images("c")} == {"1", "2"}


def test_changed_tags_and_captions_are_updated_without_embedding(library: Library) -> None:
    library.write(a="A")
    library.run()
    assert counts(library.run(library.top, tags=["t"])) == (0, 1, 0, 0)
    manifest = library.top / "m.jsonl"
    manifest.write_text('{"path": "a.png", "caption": "a cat", "title": "Cat"}\n')
    assert counts(library.run(manifest)) == (0, 1, 0, 0)
    payload = library.payload("a")
    assert (payload["title"], payload["caption"], payload["tags"]) == ("Cat", "a cat", ["t"])
    assert library.encoder.embedded == [b"A"]


@pytest.mark.parametrize("tags", [None, "cat", 7])
def test_tags_of_any_type_in_the_index_are_accepted(library: Library, tags: Any) -> None:
    library.write(a="A")
    path = library.top / "a.png"
    other = Picture("42", path.read_bytes(), str(path), "me", {"tags": tags})
    library.backend.index([other], "c")
    library.run(library.top, tags=["t"])
    assert library.payload("a")["tags"] == (["cat", "t"] if tags == "cat" else ["t"])
