"""Fixtures for the tests of the towers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from bento.encoder.images import decode_image
from tests.support.bento.architectures import ARCHITECTURES, Pair, make_pair
from tests.support.corpus import images


@pytest.fixture(scope="module")
def restored_threads() -> Iterator[None]:
    """Leave torch as many threads as it had: encoders set them for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair("clip", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures() -> dict[str, Image.Image]:
    return {
        name: decode_image(data, max_bytes=len(data), max_pixels=100_000_000)
        for name, data in images().items()
    }
