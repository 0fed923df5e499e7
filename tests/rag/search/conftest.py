"""The index of both engines that the tests of search share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rag.pictures.index import PictureIndex
from tests.support.rag.engines import quick_folder
from tests.support.rag.searching import IDENTITY, PICTURES, VECTORS, store_of
from tests.support.rag.stores import by_wire


@pytest.fixture(scope="module", params=["embedded", by_wire("local")])
def index(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PictureIndex]:
    with quick_folder(tmp_path_factory.mktemp("store")) as folder:
        store = store_of(request.param, folder)
        index = PictureIndex(store, IDENTITY)
        index.add(PICTURES, VECTORS, "pictures")
        yield index
        store.close()
