"""The architecture page names only files and names that exist."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.service

PAGE = (ROOT / "docs/architecture.md").read_text()
PATHS = set(re.findall(r"`((?:bento|rag|router_client|tests)/[\w/.]*)`", PAGE))


def test_every_path_exists() -> None:
    assert len(PATHS) > 40
    assert {path for path in PATHS if not (ROOT / path).exists()} == set()


def test_every_name_after_a_path_is_defined_there() -> None:
    named = re.findall(r"`((?:bento|rag|router_client)/[\w/]+)\.py`\s+`([\w.]+)`", PAGE)
    assert len(named) > 20
    for path, name in named:
        value: object = import_module(path.replace("/", "."))
        for part in name.split("."):
            value = getattr(value, part)


def test_every_room_is_on_it() -> None:
    rooms = {
        file.parent.relative_to(ROOT)
        for package in ("bento", "rag", "router_client")
        for file in (ROOT / package).glob("*/*.py")
    }
    for room in rooms:
        assert f'["{Path(room).name}/<br/>' in PAGE, room
