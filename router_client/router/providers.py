"""Providers for an agent router: embedding and image search. `call` never raises an exception.

registry = build_provider_registry()
response = await registry["vision_rag"].call(RouterRequest(mode="image_search", message="a cat"))
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Protocol

import httpx

from bento.contract.embedding import base64_of
from bento.contract.errors import InvalidInput, VisionEncoderError
from bento.contract.images import DEFAULT_DAO_ID
from bento.contract.search import SearchResponse, explain_search_failure
from router_client.client.client import AsyncVisionEncoderClient
from router_client.client.requests import unreadable
from router_client.router.rules import RouterRequest, RouterResponse

logger = logging.getLogger("router_client")

HEALTH_SECONDS: Final = 5.0
LARGEST_FILE: Final = 20_000_000  # bytes; the default of the service's MAX_IMAGE_BYTES
_IMAGES: Final = ("image_url", "image_path", "image_base64")
_OPTIONS: Final = ("top_k", "filter", "collection", "language")


class Provider(Protocol):
    """A backend of the router."""

    provider_id: str
    base_url: str

    async def call(self, request: RouterRequest) -> RouterResponse:
        """Answer a request. On failure `ok` is false and `error` explains why."""

    async def health(self) -> str | None:
        """Return None if the service is healthy, otherwise the problem."""

    async def close(self) -> None:
        """Close the connections."""


class _VisionProvider(ABC):
    """Hold a client for the current event loop, and turn its errors into responses."""

    def __init__(
        self,
        provider_id: str,
        base_url: str | None = None,
        timeout: float | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        health_seconds: float = HEALTH_SECONDS,
    ) -> None:
        self.provider_id = provider_id
        self._health_seconds = health_seconds
        self._new_client = partial(
            AsyncVisionEncoderClient, base_url, timeout=timeout, transport=transport
        )
        self._client = self._new_client()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.base_url = self._client.base_url

    async def call(self, request: RouterRequest) -> RouterResponse:
        """Answer a request. On failure `ok` is false and `error` explains why."""
        started = perf_counter()
        data, problem, metadata = None, None, {}
        try:
            data = await self._answer(self._client_of_loop(), request)
        except VisionEncoderError as error:
            problem, metadata = str(error), _metadata(error)
        except Exception as error:  # a bug: log it, and keep the router running
            logger.exception("provider %s failed", self.provider_id)
            problem, metadata = f"the provider failed: {error!r}", {"code": "internal_error"}
        if problem is not None:
            data = self._failed(problem, request)
        return RouterResponse(
            ok=problem is None,
            provider_id=self.provider_id,
            data=data,
            error=problem,
            metadata={**metadata, "ms": round((perf_counter() - started) * 1000, 1)},
        )

    async def health(self) -> str | None:
        """Return None if the service is healthy, otherwise the problem."""
        try:
            async with asyncio.timeout(self._health_seconds):
                await self._client_of_loop().health()
        except TimeoutError:
            return f"{self.base_url} did not answer within {self._health_seconds:g} s"
        except VisionEncoderError as error:
            return str(error)
        return None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _client_of_loop(self) -> AsyncVisionEncoderClient:
        """Return the client of the running event loop, which alone can use its connections."""
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            self._client = self._new_client()
        self._loop = loop
        return self._client

    @abstractmethod
    async def _answer(
        self, client: AsyncVisionEncoderClient, request: RouterRequest
    ) -> dict[str, Any]:
        """Return `data` of the response. Raises a `VisionEncoderError`."""

    def _failed(self, _problem: str, _request: RouterRequest) -> dict[str, Any] | None:
        """Return `data` of the response to a request that failed."""
        return None


class VisionEncoderProvider(_VisionProvider):
    """Embed a text or an image: `payload.operation` is `embed_text` or `embed_image`.

    The text is `payload.text`, or else the message. The image is one of `payload.image_url`,
    `payload.image_path` (a file on this machine) and `payload.image_base64`. `data` has the fields
    of the answer of `/embed/text`.
    """

    async def _answer(
        self, client: AsyncVisionEncoderClient, request: RouterRequest
    ) -> dict[str, Any]:
        body: dict[str, Any] = {}
        if request.payload.get("normalize") is not None:
            body["normalize"] = request.payload["normalize"]
        operation = request.payload.get("operation")
        if operation == "embed_text":
            text = request.payload.get("text") or request.message
            if not text:
                raise InvalidInput("embed_text needs a text in payload.text or in the message")
            embedded: dict[str, Any] = await client.call(
                "POST", "/embed/text", json={"text": text, **body}
            )
        elif operation == "embed_image":
            image = await _image(request)
            if image is None:
                raise InvalidInput(f"embed_image needs an image in {_any_of(_IMAGES)}")
            embedded = await client.call("POST", "/embed/image", json={**image, **body})
        else:
            raise InvalidInput(
                f"payload.operation is {operation!r}; it must be embed_text or embed_image"
            )
        if "embedding" not in embedded:
            raise VisionEncoderError(
                f"the answer of {self.base_url} has no embedding. Check VISION_ENCODER_URL",
                code="bad_answer",
            )
        return embedded


class VisionRagProvider(_VisionProvider):
    """Search the images of the tenant `dao_id`, which is `default` if the request names none.

    The query is the image in `payload.image_url`, `payload.image_path` (a file on this machine) or
    `payload.image_base64`, or else the message. `payload` may also have `top_k`, `filter`,
    `collection` and `language`. `language` (`uk` or `en`) is that of `formatted_text`; by default
    it is the language of the message.

    `data` is `{success, count, images: [{id, score, path, metadata}], formatted_text}`, also on
    failure.
    """

    async def _answer(
        self, client: AsyncVisionEncoderClient, request: RouterRequest
    ) -> dict[str, Any]:
        given = {name: request.payload.get(name) for name in _OPTIONS}
        options: Any = {name: value for name, value in given.items() if value is not None}
        options.setdefault("language", _language(request))
        options["dao_id"] = DEFAULT_DAO_ID if request.dao_id is None else request.dao_id
        image = await _image(request)
        if image is not None:
            return _search_data(await client.search(image=image, **options))
        if not request.message:
            raise InvalidInput(
                f"image_search needs a query: a message, or an image in {_any_of(_IMAGES)}"
            )
        return _search_data(await client.search(request.message, **options))

    def _failed(self, problem: str, request: RouterRequest) -> dict[str, Any]:
        return search_failed(problem, _language(request))


def build_provider_registry() -> dict[str, Provider]:
    """Return both providers by id, for the service at VISION_ENCODER_URL."""
    providers: tuple[Provider, ...] = (
        VisionEncoderProvider("vision_encoder"),
        VisionRagProvider("vision_rag"),
    )
    return {provider.provider_id: provider for provider in providers}


def search_failed(problem: str, language: str) -> dict[str, Any]:
    """Return `data` of a failed search. `language` is `uk` or `en`."""
    text = explain_search_failure(problem, language)
    return _search_data(SearchResponse(success=False, hits=[], formatted_text=text))


def _search_data(answer: SearchResponse) -> dict[str, Any]:
    return {
        "success": answer.success,
        "count": len(answer.hits),
        "images": [
            {"id": hit.id, "score": hit.score, "path": hit.path, "metadata": hit.payload}
            for hit in answer.hits
        ],
        "formatted_text": answer.formatted_text,
    }


def language_of(message: str) -> str:
    """Return `en` if all letters of a message are Latin, otherwise `uk`."""
    letters = [character for character in message if character.isalpha()]
    return "en" if letters and all(character < "\u0250" for character in letters) else "uk"


def _language(request: RouterRequest) -> str:
    return str(request.payload.get("language") or language_of(request.message or ""))


async def _image(request: RouterRequest) -> dict[str, str] | None:
    """Return the image of a request as the service takes it, None if there is none."""
    given = {name: request.payload[name] for name in _IMAGES if request.payload.get(name)}
    if len(given) > 1:
        raise InvalidInput(f"the request has several images; keep one of {_any_of(given)}")
    for name, value in given.items():
        if not isinstance(value, str):
            raise InvalidInput(f"payload.{name} must be a string, not {type(value).__name__}")
        if name == "image_path":
            data = await asyncio.to_thread(_read, Path(value))
            return {"image_base64": base64_of(data)}
        return {"image_url": value} if name == "image_url" else {"image_base64": value}
    return None


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():  # reading a pipe or a device may never end
            raise InvalidInput(f"{path} is not a file on the machine of the router")
        if path.stat().st_size > LARGEST_FILE:
            raise InvalidInput(f"{path} has more than {LARGEST_FILE:,} bytes, the limit")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def _metadata(error: VisionEncoderError) -> dict[str, Any]:
    fields = {"code": error.code, "status": error.status, "retry_after": error.retry_after}
    return {name: value for name, value in fields.items() if value is not None}


def _any_of(names: Iterable[str]) -> str:
    *rest, last = (f"payload.{name}" for name in names)
    return f"{', '.join(rest)} or {last}"
