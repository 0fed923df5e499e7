"""Finding pictures in folders, lists and manifests, and reporting unusable entries."""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from rag.indexing.failures import IndexingError
from rag.indexing.sources import Sources, find_sources, shown


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "sub/deep/d.gif", "notes.txt", ".hidden.png"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(name.encode())
    (tmp_path / "tree" / ".cache").mkdir()
    (tmp_path / "tree" / ".cache" / "e.png").write_bytes(b"e")
    return tmp_path / "tree"


def found(*given: object, lines: tuple[str, ...] = (), **options: Any) -> Sources:
    return find_sources([str(name) for name in given], lines, **options)


def below(sources: Sources, top: Path) -> list[str]:
    return [os.path.relpath(source.path, top) for source in sources.pictures]


def test_a_folder_yields_its_pictures_without_hidden_files(tree: Path) -> None:
    sources = found(tree)
    assert below(sources, tree) == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.gif"]
    assert (sources.others, sources.failures, sources.folders) == (1, [], [str(tree)])


def test_patterns_match_the_path_relative_to_the_folder(tree: Path) -> None:
    assert below(found(tree, include=["sub/*"]), tree) == ["sub/c.webp", "sub/deep/d.gif"]
    assert below(found(tree, exclude=["*.gif", "a.*"]), tree) == ["b.jpg", "sub/c.webp"]
    assert below(found(tree, include=["*.gif", "b.*"], exclude=["sub/*"]), tree) == ["b.jpg"]


def test_a_named_file_needs_no_suffix_of_a_picture(tree: Path) -> None:
    assert below(found(tree / "notes.txt"), tree) == ["notes.txt"]


def test_standard_input_lists_one_file_per_line(tree: Path) -> None:
    lines = (f"{tree / 'b.jpg'}\n", "\n", f"{tree / 'with blank .jpg'}\r\n")
    assert below(found("-", lines=lines), tree) == ["b.jpg", "with blank .jpg"]


def test_a_missing_source_is_rejected(tree: Path) -> None:
    with pytest.raises(IndexingError, match=r"^there is no file or folder /nowhere$") as caught:
        found("/nowhere")
    assert caught.value.code == "no_such_path"


def test_tags_are_added_to_all_pictures(tree: Path) -> None:
    assert {tuple(s.metadata["tags"]) for s in found(tree, tags=["x", "y"]).pictures} == {
        ("x", "y")
    }
    assert "tags" not in found(tree).pictures[0].metadata


def test_a_link_to_a_folder_is_followed_and_a_loop_is_reported(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "z.png").write_bytes(b"z")
    (tree / "linked").symlink_to(tmp_path / "other")
    (tree / "sub" / "again").symlink_to(tree)
    sources = found(tree)
    assert "linked/z.png" in below(sources, tree)
    assert len(sources.pictures) == 5
    (failure,) = sources.failures
    assert failure.path == str(tree / "sub" / "again")
    assert failure.code == "link_loop"
    assert failure.why == "the link leads back to a folder above it, so it was not followed"


def test_searching_folders_with_links_to_each_other_ends(tmp_path: Path) -> None:
    names = [f"f{n}" for n in range(7)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.png").write_bytes(name.encode())
        for other in names:
            if other != name:
                (tmp_path / name / other).symlink_to(tmp_path / other)
    sources = found(tmp_path)
    listed = below(sources, tmp_path)
    assert {f"{name}/p.png" for name in names} < set(listed)
    assert {f"{a}/{b}/p.png" for a in names for b in names if a != b} < set(listed)
    assert len(sources.pictures) + len(sources.failures) < 150  # of more than 10,000 possible paths


def test_folders_may_be_deeper_than_the_recursion_limit(tmp_path: Path) -> None:
    deep = tmp_path / "/".join("d" * 150)
    deep.mkdir(parents=True)
    (deep / "p.png").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        sources = found(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert [source.path for source in sources.pictures] == [str(deep / "p.png")]


def test_a_file_is_gone_only_if_its_folder_was_searched(tree: Path) -> None:
    (tree / "usb").mkdir()
    (tree / "trash").mkdir()
    (tree / "trash" / ".keep").touch()
    sources = found(tree, str(tree / "b.jpg"))
    wanted = {
        "lost.png": True,
        "b.jpg": False,
        "trash/lost.png": True,
        "no/lost.png": True,
        "usb/lost.png": False,
        "../tree2/lost.png": False,
    }
    gone = {path: sources.is_gone(os.path.normpath(tree / path)) for path in wanted}
    assert gone == wanted
    assert sources.may_be_unmounted(str(tree / "usb" / "lost.png"))


def test_an_empty_source_is_rejected(tree: Path) -> None:
    with pytest.raises(IndexingError, match=r"^a source is an empty string") as caught:
        found(tree, "")
    assert caught.value.code == "empty_path"


def test_a_link_without_a_target_is_reported(tree: Path) -> None:
    (tree / "itself.png").symlink_to("itself.png")
    (tree / "sub" / "lost").symlink_to("/nowhere")
    sources = found(tree)
    assert len(sources.pictures) == 4
    assert [(Path(f.path).name, f.code, f.why) for f in sources.failures] == [
        ("itself.png", "unreadable", "the target of the link does not exist"),
        ("lost", "unreadable", "the target of the link does not exist"),
    ]


def test_an_unreadable_folder_is_reported_and_not_pruned(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refusing(path: str) -> Any:  # the tests may run as root
        if path.endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    sources = found(tree)
    assert below(sources, tree) == ["a.PNG", "b.jpg"]
    assert [(f.path, f.code, f.why) for f in sources.failures] == [
        (str(tree / "sub"), "unreadable", "cannot read the folder: Permission denied")
    ]
    assert sources.folders == []


def test_a_name_that_is_not_utf_8_is_reported(tree: Path) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9.png")).write_bytes(b"x")
    sources = found(tree)
    (failure,) = sources.failures
    assert failure.code == "bad_name"
    assert failure.why == "the file name is not UTF-8 or contains NUL: rename the file"
    assert shown(failure.path).endswith("caf\\udce9.png")
    assert len(sources.pictures) == 4


def test_a_manifest_gives_ids_and_metadata(tree: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"path": "b.jpg", "id": "42", "caption": "Рудий кіт", "tags": ["cat"], "category": "pets"},
        {"path": "sub/c.webp", "title": "C", "metadata": {"year": 2026}},
        {"path": str(tree / "a.PNG")},
    ]
    manifest = tree / "all.jsonl"
    manifest.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    sources = found(manifest, tags=["t"])
    assert sources.failures == []
    first, second, third = sources.pictures
    assert (first.path, first.image_id) == (str(tree / "b.jpg"), "42")
    assert first.metadata == {"caption": "Рудий кіт", "category": "pets", "tags": ["cat", "t"]}
    assert second.metadata == {"year": 2026, "title": "C", "tags": ["t"]}
    assert (third.path, third.image_id) == (str(tree / "a.PNG"), None)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{nothing", "the line is not JSON: Expecting property name"),
        ("[]", 'the line must be an object with "path", a string'),
        ('{"id": "1"}', 'the line must be an object with "path"'),
        (
            '{"path": "a.PNG", "capton": "x"}',
            "unknown fields: capton; allowed: path, id, caption, title, category, tags, metadata",
        ),
        ('{"path": "a.PNG", "id": 7}', "id must be a string"),
        ('{"path": "a.PNG", "tags": "cat"}', "tags must be a list of strings"),
        ('{"path": "a.PNG", "metadata": []}', "metadata must be an object"),
        ('{"path": "a.PNG", "metadata": {"tags": "cat"}}', "tags must be a list of strings"),
        (
            '{"path": "a.PNG", "metadata": {"x": NaN}}',
            "the line is not JSON: NaN is not a JSON number",
        ),
        ('{"path": "a.PNG", "id": "\\ud800"}', "the line has an unpaired surrogate"),
        (
            '{"path": "a.PNG", "metadata": ' + '{"x":' * 9999 + "1" + "}" * 9999 + "}",
            "the line is not",
        ),
        ('{"path": "a.PNG", "id": "first"}', "the id 'first' is already used by an earlier line"),
        ('{"path": "a.PNG", "id": ""}', "the id is not valid: String should have at least 1"),
        ('{"path": "a.PNG", "id": "a\\nb"}', "the id is not valid: the control character"),
    ],
)
def test_an_invalid_manifest_line_is_reported_with_its_number(
    tree: Path, line: str, why: str
) -> None:
    manifest = tree / "all.jsonl"
    manifest.write_text(f'{{"path": "b.jpg", "id": "first"}}\n\n{line}\n{{"path": "a.PNG"}}\n')
    sources = found(manifest)
    assert below(sources, tree) == ["b.jpg", "a.PNG"]
    (failure,) = sources.failures
    assert (failure.path, failure.code) == (f"{manifest}, line 3", "bad_line")
    assert failure.why.startswith(why)


def test_an_id_must_be_unique_in_all_manifests(tree: Path) -> None:
    for name, path in (("1.jsonl", "a.PNG"), ("2.jsonl", "b.jpg")):
        (tree / name).write_text(f'{{"path": "{path}", "id": "same"}}\n')
    sources = found(tree / "1.jsonl", tree / "2.jsonl")
    assert below(sources, tree) == ["a.PNG"]
    assert [failure.code for failure in sources.failures] == ["bad_line"]


def test_a_path_with_a_nul_is_reported(tree: Path) -> None:
    (tree / "all.jsonl").write_text('{"path": "a\\u0000.png"}\n')
    assert [failure.code for failure in found(tree / "all.jsonl").failures] == ["bad_name"]


def test_a_file_has_the_same_path_through_a_linked_folder(tree: Path) -> None:
    (tree.parent / "linked").symlink_to(tree)
    (walked,) = found(tree.parent / "linked", include=["b.jpg"]).pictures
    (named,) = found(tree.parent / "linked" / "b.jpg").pictures
    assert walked.path == named.path == str(tree / "b.jpg")


def test_a_line_that_is_not_utf_8_is_reported(tree: Path) -> None:
    (tree / "all.jsonl").write_bytes(b'{"path": "caf\xe9.png"}\n')
    assert [failure.code for failure in found(tree / "all.jsonl").failures] == ["bad_line"]
