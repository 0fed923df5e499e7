"""The library that the tests of indexing share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rag.engines import quick_folder
from tests.support.rag.library import Library


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with quick_folder(tmp_path) as folder:
        library = Library(folder)
        yield library
        library.backend.close()
