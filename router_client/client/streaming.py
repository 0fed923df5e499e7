"""Embedding any number of pictures: a few in each request, several requests at a time."""

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
"""A picture file's bytes, or its path."""

# Limits of one request.
_IMAGES: Final = 8
_BYTES: Final = 8_000_000

R = TypeVar("R")


async def read_picture(waiting: Waiting, image: ImageFile) -> bytes:
    """Return a picture file's bytes. Raises `InvalidInput` if it cannot be read."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    try:
        return await waiting.read(Path(image))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(image, error) from None


class Stream:
    """Embeds pictures in their order; an error of one picture is its own outcome.

    `one` embeds a picture, `many` embeds a few with one request and returns None or NaN for a bad
    one. Both raise a `VisionEncoderError`.
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
        under_way: deque[Any] = deque()
        try:
            for part in parts(images):
                if len(under_way) == IN_FLIGHT:
                    for outcome in await under_way.popleft():
                        yield outcome
                under_way.append(self._waiting.start(self._embed_part(part)))
            while under_way:
                for outcome in await under_way.popleft():
                    yield outcome
        finally:
            await self._waiting.cancel(under_way)

    async def _embed_part(
        self, images: Sequence[ImageFile]
    ) -> list[Embedding | VisionEncoderError]:
        outcomes: list[Any] = [await self._read_or_error(image) for image in images]
        good = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, bytes)]
        rows: Any = [None] * len(good)
        if len(good) > 1:
            # After a refusal, send each picture alone: only a bad one fails then.
            with suppress(InvalidInput):
                rows = await self._patiently(partial(self._many, [outcomes[i] for i in good]))
        for i, row in zip(good, rows, strict=True):
            there = row is not None and row[0] == row[0]
            outcomes[i] = row if there else await self._one_or_error(outcomes[i])
        return outcomes

    async def _one_or_error(self, data: bytes) -> Embedding | VisionEncoderError:
        try:
            return await self._patiently(partial(self._one, data))
        except VisionEncoderError as error:
            if error.status == 500 or _refused(error):
                return error
            raise  # the service is at fault, not the picture

    async def _read_or_error(self, image: ImageFile) -> bytes | InvalidInput:
        try:
            return await read_picture(self._waiting, image)
        except InvalidInput as error:
            return error

    async def _patiently(self, send: Callable[[], Awaitable[R]]) -> R:
        """Send again for as long as the service answers 429."""
        return await retry_async(send, _busy_seconds, self._waiting.sleep)


def _busy_seconds(error: Exception, *_: float) -> float | None:
    if isinstance(error, VisionEncoderBusy) and error.status == 429:
        return error.retry_after or 1.0
    return None


def _refused(error: VisionEncoderError) -> bool:
    """Say whether the service refused the picture, and not the route."""
    return isinstance(error, InvalidInput) and error.status not in (None, 404, 405)


def parts(images: Iterable[ImageFile]) -> Iterator[list[ImageFile]]:
    """Split a stream of pictures into requests, by count and bytes."""
    part: list[ImageFile] = []
    held = 0
    for image in images:
        size = _size(image)
        if part and (len(part) == _IMAGES or held + size > _BYTES):
            yield part
            part, held = [], 0
        part.append(image)
        held += size
    if part:
        yield part


def _size(image: ImageFile) -> int:
    if isinstance(image, bytes | bytearray | memoryview):
        return len(image)
    try:
        return os.stat(image).st_size
    except (OSError, ValueError, TypeError):
        return 0  # reading the file will raise
