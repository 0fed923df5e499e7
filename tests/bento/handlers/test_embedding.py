"""The embedding handler: data: URIs, and requests of which a part fails."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bento import Settings
from bento.contract.embedding import ImageSource, RankRequest
from bento.contract.errors import BrokenImage, EncoderError, InvalidRequest
from bento.contract.openai import OpenAIEmbeddingsRequest
from bento.handlers.embedding import EmbeddingHandler

PICTURE = base64.b64encode(b"picture").decode()
URI = f"data:image/png;base64,{PICTURE}"


class Towers:
    """Stand-in for the runners: texts never finish if `slow`, images fail as set."""

    def __init__(self) -> None:
        self.slow = False
        self.cancelled = 0  # calls of `embed_texts`
        self.fails: EncoderError | None = None  # raised by `embed_images`
        self.bad: EncoderError | None = None  # the result of each image
        self.images: list[bytes] = []

    async def embed_texts(self, texts: Sequence[str], *, normalize: bool) -> tuple[Any, int]:
        try:
            if self.slow:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return np.ones((len(texts), 2), np.float32), len(texts)

    async def embed_image(self, data: bytes, *, normalize: bool) -> Any:
        (row,) = await self.embed_images([data], normalize=normalize)
        return row

    async def embed_images(self, images: Sequence[bytes], *, normalize: bool) -> list[Any]:
        await asyncio.sleep(0)  # let `embed_texts` start
        if self.fails:
            raise self.fails
        self.images += images
        return [self.bad or np.ones(2, np.float32) for _ in images]


@pytest.fixture
def towers() -> Towers:
    return Towers()


@pytest.fixture
def handler(towers: Towers) -> EmbeddingHandler:
    encoder = SimpleNamespace(model="m/p", model_name="m", embedding_dim=2, logit_scale=1.0)
    return EmbeddingHandler(encoder, towers, Settings())  # type: ignore[arg-type]


def inputs(*given: Any) -> OpenAIEmbeddingsRequest:
    return OpenAIEmbeddingsRequest(model="m", input=list(given))


def test_a_failed_image_cancels_the_texts_of_its_request(
    handler: EmbeddingHandler, towers: Towers
) -> None:
    towers.slow, towers.fails = True, BrokenImage("it is broken")
    rank = RankRequest(image=ImageSource(image_base64=PICTURE), texts=["a"])

    async def scene() -> None:
        for i, answer in enumerate((handler.rank(rank), handler.openai(inputs("a", URI)))):
            with pytest.raises(BrokenImage, match=r"^it is broken$"):
                await answer
            await asyncio.sleep(0)
            assert towers.cancelled == i + 1

    asyncio.run(scene())


@pytest.mark.parametrize(
    "uri",
    [
        f"DATA:image/png;base64,{PICTURE}",
        f"data:image/png;BASE64,{PICTURE}",
        f" \n{URI}",
        f"data:application/octet-stream;base64,{PICTURE}",
        f"data:;base64,{PICTURE}",
    ],
)
def test_a_data_uri_is_an_image_however_it_is_written(
    handler: EmbeddingHandler, towers: Towers, uri: str
) -> None:
    asyncio.run(handler.openai(inputs(uri, {"image": uri})))
    assert towers.images == [b"picture"] * 2


def test_a_data_uri_without_base64_is_rejected(handler: EmbeddingHandler) -> None:
    for given in ("Data:image/svg+xml,<svg/>", {"image": "Data:image/svg+xml,<svg/>"}):
        with pytest.raises(InvalidRequest, match="must be data:TYPE;base64,DATA"):
            asyncio.run(handler.openai(inputs(given)))


def test_a_text_that_starts_with_data_is_a_text(handler: EmbeddingHandler, towers: Towers) -> None:
    asyncio.run(handler.openai(inputs("data: a chart, in base64")))
    assert towers.images == []


def test_an_error_of_the_client_names_the_input(handler: EmbeddingHandler, towers: Towers) -> None:
    towers.bad = BrokenImage("it is broken")
    with pytest.raises(InvalidRequest, match=r"^input 1: it is broken$") as caught:
        asyncio.run(handler.openai(inputs("a", URI)))
    assert caught.value.param == "input.1"


def test_an_error_of_the_service_is_raised_unchanged(
    handler: EmbeddingHandler, towers: Towers
) -> None:
    towers.bad = EncoderError("this image failed in the service")
    with pytest.raises(EncoderError) as caught:
        asyncio.run(handler.openai(inputs("a", URI)))
    assert caught.value is towers.bad
