"""Answer the embedding routes and `/rank`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from bento.contract.embedding import (
    ImageGiven,
    ImageRequest,
    RankedText,
    RankRequest,
    RankResponse,
    TextRequest,
    TextsRequest,
    base64_bytes,
)
from bento.contract.errors import EncoderError, InvalidRequest, ModelNotFound, TooLarge
from bento.contract.openai import OpenAIEmbeddingsRequest, input_items
from bento.encoder.embeddings import Embeddings, normalized
from bento.handlers.fetch import ImageFetcher

if TYPE_CHECKING:
    from bento.encoder.model import Encoder
    from bento.runners.runners import Runners
    from bento.settings import Settings

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Embedded:
    """The embeddings of one request, float32: (dim,) for one item, (n, dim) for several.

    `errors` maps the index of an item to its error; the item's row is NaN. It is None if the
    route does not report errors of single items.
    """

    embeddings: Embeddings
    model: str
    normalized: bool
    tower: Literal["text", "image"]
    errors: Mapping[int, EncoderError] | None = None


@dataclass(frozen=True)
class OpenAIEmbedded:
    """The embeddings of one OpenAI request, float32 (n, dim), and its number of tokens."""

    embeddings: Embeddings
    model: str
    tokens: int
    as_base64: bool


class EmbeddingHandler:
    """Answers the embedding routes with an encoder and its runners.

    Every method raises an `EncoderError` if it cannot answer the request.
    """

    def __init__(self, encoder: Encoder, runners: Runners, settings: Settings) -> None:
        self._encoder = encoder
        self._runners = runners
        self._settings = settings
        self._fetcher = ImageFetcher(
            enabled=settings.allow_image_urls,
            max_bytes=settings.max_image_bytes,
            max_total_bytes=settings.max_request_bytes,
            hosts=frozenset(filter(None, settings.image_url_allowed_hosts.lower().split(","))),
            ports=frozenset(map(int, settings.image_url_allowed_ports.split(","))),
        )

    async def text(self, request: TextRequest) -> Embedded:
        normalize = self._normalize(request.normalize)
        embedding = await self._runners.embed_text(request.text, normalize=normalize)
        return Embedded(embedding, self._encoder.model, normalize, "text")

    async def texts(self, request: TextsRequest) -> Embedded:
        self._check_count(request.texts, "texts")
        normalize = self._normalize(request.normalize)
        embeddings, _ = await self._runners.embed_texts(request.texts, normalize=normalize)
        return Embedded(embeddings, self._encoder.model, normalize, "text")

    async def image(self, data: bytes, normalize: bool | None) -> Embedded:
        wanted = self._normalize(normalize)
        embedding = await self._runners.embed_image(data, normalize=wanted)
        return Embedded(embedding, self._encoder.model, wanted, "image")

    async def image_of(self, request: ImageRequest) -> Embedded:
        return await self.image(await self.image_bytes(request), request.normalize)

    async def images(
        self, images: Sequence[bytes | EncoderError], normalize: bool | None
    ) -> Embedded:
        """Embed each image. An error in place of an image becomes the answer for that item."""
        wanted = self._normalize(normalize)
        files = [image for image in images if isinstance(image, bytes)]
        embedded = iter(await self._runners.embed_images(files, normalize=wanted))
        rows = [next(embedded) if isinstance(image, bytes) else image for image in images]
        errors = {i: row for i, row in enumerate(rows) if isinstance(row, EncoderError)}
        bad = np.full(self._encoder.embedding_dim, np.nan, np.float32)
        stacked = np.stack([bad if isinstance(row, EncoderError) else row for row in rows])
        return Embedded(stacked, self._encoder.model, wanted, "image", errors)

    async def openai(self, request: OpenAIEmbeddingsRequest) -> OpenAIEmbedded:
        encoder = self._encoder
        if request.model not in (encoder.model, encoder.model_name):
            raise ModelNotFound(
                f"this service does not serve the model {request.model}; allowed: "
                f"{encoder.model}, {encoder.model_name}"
            )
        self._check_count(request.input, "inputs")
        items = input_items(request.input)
        dimension = request.dimensions or encoder.embedding_dim
        if dimension > encoder.embedding_dim:
            raise InvalidRequest(
                f"dimensions is {dimension}; this model allows {encoder.embedding_dim} at most",
                param="dimensions",
            )
        texts = [item.text for item in items if item.text is not None]
        sources = [source for item in items if (source := item.image_source())]
        images = [await self.image_bytes(source) for source in sources]
        (text_rows, tokens), image_rows = await _both(
            self._runners.embed_texts(texts, normalize=True),
            self._runners.embed_images(images, normalize=True),
        )
        rows = []
        of_text, of_image = iter(text_rows), iter(image_rows)
        for i, item in enumerate(items):
            row = next(of_image) if item.text is None else next(of_text)
            if isinstance(row, EncoderError):
                raise (
                    row
                    if row.status >= 500
                    else InvalidRequest(f"input {i}: {row}", param=f"input.{i}")
                )
            rows.append(row[:dimension])
        return OpenAIEmbedded(
            normalized(np.stack(rows)), encoder.model, tokens, request.encoding_format == "base64"
        )

    async def rank(self, request: RankRequest) -> RankResponse:
        """Classify an image zero-shot: a softmax of the scaled cosines, as in CLIP's training."""
        self._check_count(request.texts, "texts")
        data = await self.image_bytes(request.image)
        image, (texts, _) = await _both(
            self._runners.embed_image(data, normalize=True),
            self._runners.embed_texts(request.texts, normalize=True),
        )
        scores = texts @ image  # (n,)
        logits = self._encoder.logit_scale * (scores - scores.max())
        probabilities = np.exp(logits) / np.exp(logits).sum()
        return RankResponse(
            ranking=[
                RankedText(
                    text=request.texts[i],
                    probability=float(probabilities[i]),
                    score=float(scores[i]),
                )
                for i in np.argsort(-scores, kind="stable")
            ],
            model=self._encoder.model,
        )

    async def image_bytes(self, source: ImageGiven) -> bytes:
        """Return the image file of a request: decode its base64 or fetch its URL."""
        if source.image_base64 is not None:
            return base64_bytes(source.image_base64)
        if source.image_url is None:
            raise InvalidRequest("give an image as image_url or image_base64")
        return await self._fetcher.fetch(source.image_url)

    def _normalize(self, given: bool | None) -> bool:
        return self._settings.normalize_embeddings if given is None else given

    def _check_count(self, items: Sequence[Any], name: str) -> None:
        if len(items) > self._settings.max_request_items:
            raise TooLarge(
                f"the request has {len(items):,} {name}; at most "
                f"{self._settings.max_request_items:,} are allowed (MAX_REQUEST_ITEMS)"
            )


async def _both(first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """Await both concurrently; if one fails, cancel the other."""
    tasks = asyncio.create_task(first), asyncio.create_task(second)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
