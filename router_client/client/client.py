"""The asyncio client of the service's HTTP API. `blocking.py` has the blocking one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import httpx
from pydantic import BaseModel

from bento.contract.embedding import (
    HealthResponse,
    InfoResponse,
    RankedText,
    RankResponse,
    base64_of,
)
from bento.contract.errors import InvalidInput, VisionEncoderError
from bento.contract.halving import Halving
from bento.contract.images import (
    DEFAULT_DAO_ID,
    DeleteResponse,
    DropResponse,
    IndexedImage,
    IndexResponse,
    ListResponse,
    Outcome,
    PublishResponse,
    StatsResponse,
    UpdateResponse,
)
from bento.contract.search import ManySearchesResponse, SearchRequest, SearchResponse
from router_client.client.embeddings import (
    accepted,
    numpy_or_none,
    read_embedding,
    read_embeddings,
    read_json,
)
from router_client.client.requests import (
    collection_path,
    form,
    given,
    quoted,
)
from router_client.client.sending import Sender
from router_client.client.settings import connection
from router_client.client.streaming import ImageFile, Stream, read_picture
from router_client.client.waiting import Answer, AsyncWaiting, Waiting

if TYPE_CHECKING:
    from router_client.client.embeddings import Embedding, Embeddings

T = TypeVar("T", bound=BaseModel)

_TEXTS_AT_ONCE: Final = 256


class AsyncVisionEncoderClient:
    """Call a running service from asyncio code. A client belongs to one event loop.

    `base_url`, `timeout` and `api_key` default to VISION_ENCODER_URL, VISION_ENCODER_TIMEOUT and
    API_KEY. If only one of address and key comes from a `.env` file, the client raises
    `InvalidInput`, because a stranger's file could redirect the key. `timeout` is in seconds and
    bounds a call with all its attempts. If the service is busy, starting or unreachable, the client
    makes up to `max_retries` retries, if that is safe.

    Embeddings are float32 arrays if numpy is installed, otherwise lists. They are L2-normalised
    unless `normalize` is false. Other answers are the models of `bento.contract`. A call that
    fails raises a `VisionEncoderError` with the status, the code and the message of the service.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        timeout: float | None = None,
        api_key: str | None = None,
        max_retries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._connect(partial(AsyncWaiting, transport), base_url, timeout, api_key, max_retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        self._sender.closed = True
        await self._waiting.close()

    async def call(self, method: str, path: str, /, **request: Any) -> Any:
        """Send a request to any route and return the JSON object of its answer.

        `request` takes the arguments of httpx, such as `json`, `params` and `files`. Pass
        `safe=False` for a request that is not idempotent, `once=True` to send it without retries.
        """
        return await self._sender.call(method, path, read_json, **request)

    async def health(self) -> HealthResponse:
        """Return the service's health, without retries. Raises `VisionEncoderBusy` if unhealthy."""
        return await self._ask(HealthResponse, "GET", "/health", once=True)

    async def info(self) -> InfoResponse:
        """Return the model's name, the dimension of its embeddings and the service's limits."""
        return await self._ask(InfoResponse, "GET", "/info")

    async def embed_text(self, text: str, normalize: bool = True) -> Embedding:
        """Return the embedding of a text, of shape (dim,)."""
        body = {"text": text, "normalize": normalize}
        row: Embedding = await self._embed(read_embedding, "/embed/text", json=body)
        return row

    async def embed_texts(self, texts: Sequence[str], normalize: bool = True) -> Embeddings:
        """Return the embeddings of any number of texts, of shape (n, dim), in the same order."""
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, not one string")
        if not len(texts):  # the service rejects an empty list with its own message
            return await self._embed_some([], normalize)
        rows: list[Any] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            for batch in (batches := Halving(list(texts[start : start + _TEXTS_AT_ONCE]))):
                try:
                    rows.extend(await self._embed_some(batch, normalize))
                except InvalidInput as error:  # 413: the service accepts fewer at once
                    if error.status != 413 or not batches.halve():
                        raise
        numpy = numpy_or_none()
        stacked: Embeddings = numpy.stack(rows) if numpy else rows
        return stacked

    async def embed_image_file(
        self, path: str | os.PathLike[str], normalize: bool = True
    ) -> Embedding:
        """Return the embedding of the image file at `path`, of shape (dim,)."""
        return await self.embed_image_bytes(await read_picture(self._waiting, path), normalize)

    async def embed_image_bytes(self, data: bytes, normalize: bool = True) -> Embedding:
        """Return the embedding of the bytes of an image file, of shape (dim,)."""
        files = {"file": ("image", bytes(data))}
        row: Embedding = await self._embed(
            read_embedding, "/embed/image/upload", files=files, data=form(normalize)
        )
        return row

    async def embed_image_url(self, url: str, normalize: bool = True) -> Embedding:
        """Let the service fetch the image at `url`; return its embedding, of shape (dim,).

        Raises `InvalidInput` if the service does not fetch URLs (ALLOW_IMAGE_URLS).
        """
        body = {"image_url": url, "normalize": normalize}
        row: Embedding = await self._embed(read_embedding, "/embed/image", json=body)
        return row

    async def embed_images(
        self, images: Iterable[ImageFile], normalize: bool = True
    ) -> AsyncIterator[Embedding | VisionEncoderError]:
        """Yield the embedding or the error of each image, in the same order.

        An image is the bytes or the path of a file. Up to 64 images are in flight at a time. The
        stream waits while the service is busy, and raises if the service is unavailable.
        """
        stream = Stream(
            self._waiting,
            one=partial(self.embed_image_bytes, normalize=normalize),
            many=partial(self._embed_many, normalize=normalize),
        )
        async with aclosing(stream.embed(images)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def rank(self, image: ImageFile, texts: Sequence[str]) -> list[RankedText]:
        """Return the texts with the probability that each describes the image, best first."""
        source = {"image_base64": base64_of(await read_picture(self._waiting, image))}
        body = {"image": source, "texts": list(texts)}
        return (await self._ask(RankResponse, "POST", "/rank", json=body)).ranking

    async def search(
        self, /, text: str | list[str] | SearchRequest | None = None, **options: Any
    ) -> SearchResponse:
        """Find images by a text, by the option `image` or by a `SearchRequest`; best first.

        The options are the fields of `bento.contract.search.SearchRequest`, given as models or as
        dicts. The service validates them.
        """
        body: Any = {**({} if text is None else {"text": text}), **options}
        if isinstance(text, SearchRequest):
            if options:
                raise TypeError("give a SearchRequest or options, not both")
            body = text
        return await self._ask(SearchResponse, "POST", "/search", json=body)

    async def search_many(
        self, requests: Sequence[SearchRequest | Mapping[str, Any]]
    ) -> list[SearchResponse]:
        """Make many searches in one call. A failed one has `success` false and an `error`."""
        searches = [r if isinstance(r, SearchRequest) else dict(r) for r in requests]
        body = {"searches": searches}
        return (await self._ask(ManySearchesResponse, "POST", "/search/batch", json=body)).results

    async def index_image(
        self,
        image_id: str,
        data: bytes,
        *,
        dao_id: str = DEFAULT_DAO_ID,
        image_path: str = "",
        duplicates: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        collection: str | None = None,
        staged: bool = False,
    ) -> Outcome:
        """Index an image and return the outcome: indexed, updated or unchanged."""
        body = {
            "id": image_id,
            "image_base64": base64_of(data),
            "dao_id": dao_id,
            "image_path": image_path,
            "duplicates": list(duplicates),
            "metadata": dict(metadata or {}),
            "collection": collection,
            "staged": staged,
        }
        return (await self._ask(IndexResponse, "POST", "/images", json=body)).outcome

    async def update_image(
        self,
        image_id: str,
        *,
        dao_id: str = DEFAULT_DAO_ID,
        collection: str | None = None,
        paths: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Replace the paths or the metadata of an image. Return False if it is not indexed."""
        body: dict[str, Any] = {}
        if paths is not None:
            body["paths"] = list(paths)
        if metadata is not None:
            body["metadata"] = dict(metadata)
        path, query = f"/images/{quoted(image_id)}", given(dao_id=dao_id, collection=collection)
        answer = await self._ask(UpdateResponse, "PATCH", path, params=query, json=body)
        return answer.updated

    async def delete_image(
        self,
        image_id: str,
        *,
        dao_id: str = DEFAULT_DAO_ID,
        collection: str | None = None,
        staged: bool = False,
    ) -> bool:
        """Delete an image from a collection. Return False if it was not indexed."""
        flag = "true" if staged else None
        query = given(dao_id=dao_id, collection=collection, staged=flag)
        path = f"/images/{quoted(image_id)}"
        # Not safe to retry: after a first deletion, the second would return False.
        answer = await self._ask(DeleteResponse, "DELETE", path, safe=False, params=query)
        return answer.deleted

    async def images(
        self, collection: str, *, dao_id: str | None = None, generation: str | None = None
    ) -> AsyncIterator[IndexedImage]:
        """Yield the images of a collection, fetched page by page."""
        path, start = collection_path(collection, "/images"), None
        while True:
            query = given(dao_id=dao_id, generation=generation, start=start)
            page = await self._ask(ListResponse, "GET", path, params=query)
            for image in page.images:
                yield image
            if page.next is None:
                return
            start = page.next

    async def stats(self, collection: str) -> StatsResponse:
        """Return a collection's number of points, model, dimension and versions."""
        return await self._ask(StatsResponse, "GET", collection_path(collection))

    async def publish(self, collection: str) -> PublishResponse:
        """Publish the version that was indexed with the service's model, atomically."""
        path = collection_path(collection, "/publish")
        return await self._ask(PublishResponse, "POST", path, safe=False)

    async def drop(self, collection: str, generation: str) -> bool:
        """Delete a version that is not published. Return False if it does not exist."""
        path = collection_path(collection, f"/generations/{quoted(generation)}")
        return (await self._ask(DropResponse, "DELETE", path, safe=False)).dropped

    def _connect(
        self,
        waiting: Callable[..., Waiting],
        base_url: str | None,
        timeout: float | None,
        api_key: str | None,
        max_retries: int,
    ) -> None:
        if max_retries < 0:
            raise InvalidInput(f"max_retries is {max_retries}; it must be 0 or more")
        url, headers, seconds = connection(base_url, timeout, api_key)
        self.base_url = str(url.copy_with(userinfo=b""))
        self._waiting = waiting(base_url=url, headers=headers)
        self._sender = Sender(
            self._waiting, self.base_url, timeout=seconds, max_retries=max_retries
        )

    async def _ask(self, kind: type[T], method: str, path: str, **request: Any) -> T:
        """Send a request and validate the answer as a model of type `kind`."""
        return await self._sender.call(
            method, path, lambda answer: kind.model_validate_json(answer.content), **request
        )

    async def _embed(self, read: Callable[[Answer], Any], path: str, **request: Any) -> Any:
        return await self._sender.call("POST", path, read, headers=accepted(), **request)

    async def _embed_some(self, texts: Sequence[str], normalize: bool) -> Embeddings:
        read = partial(read_embeddings, count=len(texts))
        body = {"texts": texts, "normalize": normalize}
        rows: Embeddings = await self._embed(read, "/embed/texts", json=body)
        return rows

    async def _embed_many(self, images: Sequence[bytes], normalize: bool) -> Embeddings:
        read = partial(read_embeddings, count=len(images))
        files = [("files", ("image", data)) for data in images]
        rows: Embeddings = await self._embed(
            read, "/embed/images", files=files, data=form(normalize)
        )
        return rows
