"""The size of folders and files."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.paths import ROOT

CODE = sorted(
    path
    for top in ROOT.iterdir()
    if not top.name.startswith(".") and top.name != "build"
    for path in ([top] if top.is_file() else top.rglob("*"))
    if path.suffix in {".js", ".py"}
)


def test_no_folder_holds_more_than_14_code_files() -> None:
    files = Counter(str(path.parent.relative_to(ROOT)) for path in CODE)
    assert {folder: count for folder, count in files.items() if count > 14} == {}


@pytest.mark.parametrize(
    ("pattern", "longest"),
    [
        ("service.py", 119),
        ("bento/**/*.py", 350),
        ("rag/**/*.py", 350),
        ("router_client/**/*.py", 350),
        ("rag/web/page/**/*.js", 299),
        ("tests/**/*.py", 600),
    ],
)
def test_no_file_is_too_long(pattern: str, longest: int) -> None:
    files = list(ROOT.glob(pattern))
    assert files, f"no file matches {pattern}"
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {path: length for path, length in lengths.items() if length > longest} == {}
