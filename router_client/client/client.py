"""The asyncio client of the service's HTTP API; `router_client.client.blocking` is its twin."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, Unpack
from urllib.parse import quote

import httpx

from bento.contract.errors import InvalidInput, VisionEncoderError
from router_client.client.answers import (
    NPY,
    Health,
    IndexedImage,
    Info,
    Outcome,
    Published,
    RankedText,
    SearchAnswer,
    SearchOptions,
    Stats,
    numpy_or_none,
    read_embedding,
    read_embeddings,
    read_json,
    read_search,
)
from router_client.client.sending import Sender
from router_client.client.settings import LONGEST_TIMEOUT, ClientSettings
from router_client.client.streaming import ImageFile, Stream
from router_client.client.waiting import AsyncWaiting, Waiting

if TYPE_CHECKING:
    from router_client.client.answers import Embedding, Embeddings

_TEXTS_AT_ONCE: Final = 256


class AsyncVisionEncoderClient:
    """Embeds, indexes and searches through a running service, for asyncio.

    `base_url`, `timeout` (seconds, of a call with all its attempts) and `api_key` are
    VISION_ENCODER_URL, VISION_ENCODER_TIMEOUT and API_KEY unless given. What a busy, starting or
    vanished service leaves undone is tried again, `max_retries` times, if that is safe. Every call
    raises a `VisionEncoderError` with the status, the code and the server's sentence. A client
    belongs to one event loop.

    Embeddings are float32 arrays where numpy is installed, and lists where it is not. They are
    L2-normalised unless `normalize` is false.
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
        """Send what has no method of its own here and return the JSON object of the answer.

        `request` is what httpx takes (`json`, `params`, `files`), `safe` whether it may be carried
        out twice, `once` that it is not sent again.
        """
        return await self._sender.call(method, path, read_json, **request)

    async def health(self) -> Health:
        """Say how the service is; raises `VisionEncoderBusy` when unhealthy, without a retry."""
        health: Health = await self.call("GET", "/health", once=True)
        return health

    async def info(self) -> Info:
        """Return the model, its dimension and the service's limits."""
        info: Info = await self.call("GET", "/info")
        return info

    async def embed_text(self, text: str, normalize: bool = True) -> Embedding:
        """Return the embedding of a text, (dim,)."""
        return await self._embedding("/embed/text", json={"text": text, "normalize": normalize})

    async def embed_texts(self, texts: Sequence[str], normalize: bool = True) -> Embeddings:
        """Return the embeddings of any number of texts, (n, dim), in their order."""
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, not one string")
        rows: list[Any] = []
        for i in range(0, max(len(texts), 1), _TEXTS_AT_ONCE):
            rows += await self._embed_some(list(texts[i : i + _TEXTS_AT_ONCE]), normalize)
        numpy = numpy_or_none()
        stacked: Embeddings = numpy.stack(rows) if numpy else rows
        return stacked

    async def embed_image_file(
        self, path: str | os.PathLike[str], normalize: bool = True
    ) -> Embedding:
        """Return the embedding of the picture file at `path`, (dim,)."""
        return await self.embed_image_bytes(await self._bytes(path), normalize)

    async def embed_image_bytes(self, data: bytes, normalize: bool = True) -> Embedding:
        """Return the embedding of a picture file's bytes, (dim,)."""
        return await self._embedding(
            "/embed/image/upload", files={"file": ("image", bytes(data))}, data=_form(normalize)
        )

    async def embed_image_url(self, url: str, normalize: bool = True) -> Embedding:
        """Return the embedding of the picture at `url`, (dim,); the service fetches it.

        It refuses unless its operator allowed that (ALLOW_IMAGE_URLS).
        """
        return await self._embedding(
            "/embed/image", json={"image_url": url, "normalize": normalize}
        )

    async def embed_images(
        self, images: Iterable[ImageFile], normalize: bool = True
    ) -> AsyncIterator[Embedding | VisionEncoderError]:
        """Yield for each of any number of pictures its embedding or its error, in their order.

        A picture is the bytes of a file or its path. Up to 64 are under way at a time. A busy
        service is waited for; one that is away raises, since no further picture could be embedded.
        """
        stream = Stream(
            self._waiting,
            read=self._bytes,
            one=partial(self.embed_image_bytes, normalize=normalize),
            many=partial(self._embed_many, normalize=normalize),
        )
        async with aclosing(stream.embed(images)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def rank(self, image: ImageFile, texts: Sequence[str]) -> list[RankedText]:
        """Say which of several texts describes a picture best, best first."""
        source = {"image_base64": _base64(await self._bytes(image))}
        body = {"image": source, "texts": list(texts)}
        ranking: list[RankedText] = await self._sender.call(
            "POST", "/rank", lambda answer: read_json(answer)["ranking"], json=body
        )
        return ranking

    async def search(
        self, text: str | list[str] | None = None, **options: Unpack[SearchOptions]
    ) -> SearchAnswer:
        """Find pictures by a text or by the `image` option, best first.

        The options are those of `POST /search`.
        """
        body = {**({} if text is None else {"text": text}), **options}
        found: SearchAnswer = await self._sender.call("POST", "/search", read_search, json=body)
        return found

    async def search_many(self, requests: Sequence[Mapping[str, Any]]) -> list[SearchAnswer]:
        """Make many searches in one call; one that fails has `success` false and `error`."""
        body = {"searches": [dict(request) for request in requests]}
        results: list[SearchAnswer] = await self._sender.call(
            "POST", "/search/batch", lambda answer: read_json(answer)["results"], json=body
        )
        return results

    async def index_image(
        self,
        image_id: str,
        data: bytes,
        *,
        dao_id: str = "default",
        image_path: str = "",
        duplicates: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        collection: str | None = None,
        staged: bool = False,
    ) -> Outcome:
        """Index a picture and return the outcome: indexed, updated or unchanged."""
        body = {
            "id": image_id,
            "image_base64": _base64(data),
            "dao_id": dao_id,
            "image_path": image_path,
            "duplicates": list(duplicates),
            "metadata": dict(metadata or {}),
            "collection": collection,
            "staged": staged,
        }
        outcome: Outcome = await self._sender.call(
            "POST", "/images", lambda answer: read_json(answer)["outcome"], json=body
        )
        return outcome

    async def update_image(
        self,
        image_id: str,
        *,
        dao_id: str = "default",
        collection: str | None = None,
        paths: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Replace where a picture lies, or its metadata, and say whether it was there."""
        body: dict[str, Any] = {}
        if paths is not None:
            body["paths"] = list(paths)
        if metadata is not None:
            body["metadata"] = dict(metadata)
        return await self._sender.call(
            "PATCH",
            f"/images/{_quoted(image_id)}",
            lambda answer: bool(read_json(answer)["updated"]),
            params=_given(dao_id=dao_id, collection=collection),
            json=body,
        )

    async def delete_image(
        self,
        image_id: str,
        *,
        dao_id: str = "default",
        collection: str | None = None,
        staged: bool = False,
    ) -> bool:
        """Forget a picture and say whether it was there."""
        return await self._sender.call(
            "DELETE",
            f"/images/{_quoted(image_id)}",
            lambda answer: bool(read_json(answer)["deleted"]),
            safe=False,  # a second time it would not be there
            params=_given(dao_id=dao_id, collection=collection, staged="true" if staged else None),
        )

    async def images(
        self, collection: str, *, dao_id: str | None = None, generation: str | None = None
    ) -> AsyncIterator[IndexedImage]:
        """List what a collection holds, page by page."""
        start: str | None = None
        while True:
            held, start = await self._sender.call(
                "GET",
                f"{_path(collection)}/images",
                lambda answer: (read_json(answer)["images"], read_json(answer)["next"]),
                params=_given(dao_id=dao_id, generation=generation, start=start),
            )
            for image in held:
                yield image
            if start is None:
                return

    async def stats(self, collection: str) -> Stats:
        """Return what a collection holds: points, model, dimension, generations."""
        stats: Stats = await self.call("GET", _path(collection))
        return stats

    async def publish(self, collection: str) -> Published:
        """Make the generation of the service's model the published one, in one step."""
        published: Published = await self.call("POST", f"{_path(collection)}/publish", safe=False)
        return published

    async def drop(self, collection: str, generation: str) -> bool:
        """Delete a generation that is not published and say whether it was there."""
        return await self._sender.call(
            "DELETE",
            f"{_path(collection)}/generations/{_quoted(generation)}",
            lambda answer: bool(read_json(answer)["dropped"]),
            safe=False,
        )

    def _connect(
        self,
        waiting: Callable[..., Waiting],
        base_url: str | None,
        timeout: float | None,
        api_key: str | None,
        max_retries: int,
    ) -> None:
        settings = ClientSettings()
        seconds = settings.vision_encoder_timeout if timeout is None else timeout
        if not 0 < seconds <= LONGEST_TIMEOUT:
            raise InvalidInput(f"timeout is {seconds}; allowed: above 0, to {LONGEST_TIMEOUT} s")
        if max_retries < 0:
            raise InvalidInput(f"max_retries is {max_retries}; allowed: 0 and more")
        if api_key is None and settings.api_key:
            # a service that takes several has them in the same variable
            api_key = settings.api_key.get_secret_value().partition(",")[0]
        url = _url(settings.vision_encoder_url if base_url is None else base_url)
        self.base_url = str(url.copy_with(userinfo=b""))
        self._waiting = waiting(base_url=url, headers=_authorization(api_key))
        self._sender = Sender(
            self._waiting, self.base_url, timeout=seconds, max_retries=max_retries
        )

    async def _embed_some(self, texts: list[str], normalize: bool) -> list[Any]:
        body = {"texts": texts, "normalize": normalize}
        try:
            return list(await self._embeddings("/embed/texts", len(texts), json=body))
        except InvalidInput as error:
            if error.status != 413 or len(texts) < 2:
                raise
        half = len(texts) // 2  # the service takes fewer at once
        first = await self._embed_some(texts[:half], normalize)
        return first + await self._embed_some(texts[half:], normalize)

    async def _embed_many(self, images: Sequence[bytes], normalize: bool) -> Embeddings:
        return await self._embeddings(
            "/embed/images",
            len(images),
            files=[("files", ("image", data)) for data in images],
            data=_form(normalize),
        )

    async def _embedding(self, path: str, **request: Any) -> Embedding:
        embedding: Embedding = await self._sender.call(
            "POST", path, read_embedding, headers=_accepted(), **request
        )
        return embedding

    async def _embeddings(self, path: str, count: int, **request: Any) -> Embeddings:
        embeddings: Embeddings = await self._sender.call(
            "POST", path, partial(read_embeddings, count=count), headers=_accepted(), **request
        )
        return embeddings

    async def _bytes(self, image: ImageFile) -> bytes:
        """Return a picture file's bytes. Raises `InvalidInput` when it cannot be read."""
        if isinstance(image, bytes | bytearray | memoryview):
            return bytes(image)
        try:
            return await self._waiting.read(Path(image))
        except (OSError, ValueError, TypeError) as error:
            what = getattr(error, "strerror", None) or error
            raise InvalidInput(f"cannot read {image}: {what}") from None


def _url(given: str) -> httpx.URL:
    try:
        url = httpx.URL(given)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput(
            "the address of the vision encoder (VISION_ENCODER_URL) must be a URL such as "
            "http://gpu-host:8001"
        )
    return url


def _authorization(key: str | None) -> dict[str, str] | None:
    """Return the header that carries a key. The key is in no error."""
    key = (key or "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable()):
        raise InvalidInput("the API key (API_KEY) has characters that no header can carry")
    return {"Authorization": f"Bearer {key}"}


def _accepted() -> dict[str, str] | None:
    return {"Accept": NPY} if numpy_or_none() else None


def _form(normalize: bool) -> dict[str, str]:
    return {"normalize": str(normalize).lower()}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _quoted(name: str) -> str:
    try:
        return quote(name, safe="")
    except (TypeError, ValueError):
        raise InvalidInput(f"{name!r} cannot be part of a URL") from None


def _path(collection: str) -> str:
    return f"/collections/{_quoted(collection)}"


def _given(**parameters: str | None) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if value is not None}
