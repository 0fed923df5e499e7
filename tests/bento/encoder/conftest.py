"""Fixtures for the tests of the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from bento.encoder.images import decode_image
from tests.support.corpus import images

if TYPE_CHECKING:
    from tests.support.bento.architectures import Pair


@pytest.fixture(scope="module")
def restored_threads() -> Iterator[None]:
    """Restore the number of torch's threads, which an encoder sets for the whole process."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "pair" in metafunc.fixturenames:
        from tests.support.bento.architectures import ARCHITECTURES

        metafunc.parametrize("pair", list(ARCHITECTURES), indirect=True, scope="module")


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return a model of each architecture, and an encoder with it."""
    from tests.support.bento.architectures import make_pair

    return make_pair(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    from tests.support.bento.architectures import make_pair

    return make_pair("clip", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def pictures() -> dict[str, Image.Image]:
    return {
        name: decode_image(data, max_bytes=len(data), max_pixels=100_000_000)
        for name, data in images().items()
    }
