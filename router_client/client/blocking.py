"""The blocking client: it runs the coroutines of the asyncio client over `BlockingWaiting`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from router_client.client.client import AsyncVisionEncoderClient
from router_client.client.waiting import BlockingWaiting, run

P = ParamSpec("P")
R = TypeVar("R")


def _blocking(
    method: Callable[Concatenate[AsyncVisionEncoderClient, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[VisionEncoderClient, P], R]:
    @wraps(method)
    def call(client: VisionEncoderClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = run(method(client._body, *args, **kwargs))
        return result

    return call


def _blocking_each(
    method: Callable[Concatenate[AsyncVisionEncoderClient, P], AsyncIterator[R]],
) -> Callable[Concatenate[VisionEncoderClient, P], Iterator[R]]:
    @wraps(method)
    def call(client: VisionEncoderClient, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        stream: Any = method(client._body, *args, **kwargs)
        try:
            while True:
                try:
                    item: R = run(anext(stream))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            run(stream.aclose())

    return call


class VisionEncoderClient:
    """Offer the methods of `AsyncVisionEncoderClient` as blocking calls.

    A client is thread-safe. Close it after use, or use it in a `with` block.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        timeout: float | None = None,
        api_key: str | None = None,
        max_retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._body = AsyncVisionEncoderClient.__new__(AsyncVisionEncoderClient)
        waiting = partial(BlockingWaiting, transport)
        self._body._connect(waiting, base_url, timeout, api_key, max_retries)
        self.base_url = self._body.base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    close = _blocking(AsyncVisionEncoderClient.close)
    call = _blocking(AsyncVisionEncoderClient.call)
    health = _blocking(AsyncVisionEncoderClient.health)
    info = _blocking(AsyncVisionEncoderClient.info)
    embed_text = _blocking(AsyncVisionEncoderClient.embed_text)
    embed_texts = _blocking(AsyncVisionEncoderClient.embed_texts)
    embed_image_file = _blocking(AsyncVisionEncoderClient.embed_image_file)
    embed_image_bytes = _blocking(AsyncVisionEncoderClient.embed_image_bytes)
    embed_image_url = _blocking(AsyncVisionEncoderClient.embed_image_url)
    embed_images = _blocking_each(AsyncVisionEncoderClient.embed_images)
    rank = _blocking(AsyncVisionEncoderClient.rank)
    search = _blocking(AsyncVisionEncoderClient.search)
    search_many = _blocking(AsyncVisionEncoderClient.search_many)
    index_image = _blocking(AsyncVisionEncoderClient.index_image)
    update_image = _blocking(AsyncVisionEncoderClient.update_image)
    delete_image = _blocking(AsyncVisionEncoderClient.delete_image)
    images = _blocking_each(AsyncVisionEncoderClient.images)
    stats = _blocking(AsyncVisionEncoderClient.stats)
    publish = _blocking(AsyncVisionEncoderClient.publish)
    drop = _blocking(AsyncVisionEncoderClient.drop)
