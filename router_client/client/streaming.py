"""Embed a stream of images: a few in each request, several requests at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bento.contract.errors import InvalidInput, VisionEncoderBusy, VisionEncoderError
from bento.contract.retry import retry_async
from router_client.client.requests import unreadable
from router_client.client.waiting import IN_FLIGHT, Waiting

if TYPE_CHECKING:
    from router_client.client.embeddings import Embedding, Embeddings

ImageFile = bytes | bytearray | memoryview | str | os.PathLike[str]
"""The bytes of an image file, or its path."""

# Limits of one request; a larger image is sent alone.
_IMAGES: Final = 8
_BYTES: Final = 8_000_000

R = TypeVar("R")


async def read_picture(waiting: Waiting, image: ImageFile) -> bytes:
    """Return the bytes of an image file. Raises `InvalidInput` if it cannot be read."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    try:
        return await waiting.read(Path(image))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(image, error) from None


class Stream:
    """Embed images in order, and yield the error of a bad image in its place.

    `one` embeds one image. `many` embeds several in one request and returns None or NaN for those
    that cannot be embedded. Both raise a `VisionEncoderError`.
    """

    def __init__(
        self,
        waiting: Waiting,
        one: Callable[[bytes], Awaitable[Embedding]],
        many: Callable[[Sequence[bytes]], Awaitable[Embeddings]],
    ) -> None:
        self._waiting = waiting
        self._one = one
        self._many = many

    async def embed(
        self, images: Iterable[ImageFile]
    ) -> AsyncGenerator[Embedding | VisionEncoderError, None]:
        in_flight: deque[Any] = deque()
        try:
            for batch in batches(images):
                if len(in_flight) == IN_FLIGHT:
                    for outcome in await in_flight.popleft():
                        yield outcome
                in_flight.append(self._waiting.start(self._embed_batch(batch)))
            while in_flight:
                for outcome in await in_flight.popleft():
                    yield outcome
        finally:
            await self._waiting.cancel(in_flight)

    async def _embed_batch(
        self, images: Sequence[ImageFile]
    ) -> list[Embedding | VisionEncoderError]:
        outcomes: list[Any] = [await self._read_or_error(image) for image in images]
        good = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, bytes)]
        rows: Any = [None] * len(good)
        if len(good) > 1:
            # If the service rejects the batch, send each image alone to find the bad ones.
            with suppress(InvalidInput):
                rows = await self._while_busy(partial(self._many, [outcomes[i] for i in good]))
        for i, row in zip(good, rows, strict=True):
            embedded = row is not None and row[0] == row[0]  # NaN differs from itself
            outcomes[i] = row if embedded else await self._one_or_error(outcomes[i])
        return outcomes

    async def _one_or_error(self, data: bytes) -> Embedding | VisionEncoderError:
        try:
            return await self._while_busy(partial(self._one, data))
        except VisionEncoderError as error:
            if error.status == 500 or _rejects_image(error):
                return error
            raise  # the service is at fault, not the image

    async def _read_or_error(self, image: ImageFile) -> bytes | InvalidInput:
        try:
            return await read_picture(self._waiting, image)
        except InvalidInput as error:
            return error

    async def _while_busy(self, send: Callable[[], Awaitable[R]]) -> R:
        """Repeat a request for as long as the service answers 429."""
        return await retry_async(send, _busy_seconds, self._waiting.sleep)


def _busy_seconds(error: Exception, *_: float) -> float | None:
    if isinstance(error, VisionEncoderBusy) and error.status == 429:
        return error.retry_after or 1.0
    return None


def _rejects_image(error: VisionEncoderError) -> bool:
    """Return whether the service rejected the image itself, and not the route."""
    return isinstance(error, InvalidInput) and error.status not in (None, 404, 405)


def batches(images: Iterable[ImageFile]) -> Iterator[list[ImageFile]]:
    """Split a stream of images into batches of at most 8 images and 8 MB.

    An image of more than 8 MB is a batch of its own.
    """
    batch: list[ImageFile] = []
    total = 0
    for image in images:
        size = _size(image)
        if batch and (len(batch) == _IMAGES or total + size > _BYTES):
            yield batch
            batch, total = [], 0
        batch.append(image)
        total += size
    if batch:
        yield batch


def _size(image: ImageFile) -> int:
    if isinstance(image, bytes | bytearray | memoryview):
        return len(image)
    try:
        return os.stat(image).st_size
    except (OSError, ValueError, TypeError):
        return 0  # reading it later raises the error
