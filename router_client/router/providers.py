"""Providers for an agent router: embedding and image search. They never raise.

registry = build_provider_registry()
response = await registry["vision_rag"].call(RouterRequest(mode="image_search", message="a cat"))
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
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
LARGEST_FILE: Final = 20_000_000  # bytes; the service's default limit
_PICTURES: Final = ("image_url", "image_path", "image_base64")
_OPTIONS: Final = ("top_k", "filter", "collection", "language")


class Provider(Protocol):
    """Answers requests of the router."""

    provider_id: str
    base_url: str

    async def call(self, request: RouterRequest) -> RouterResponse:
        """Answer a request; after a failure `ok` is false and `error` says why."""

    async def health(self) -> str | None:
        """Return what is wrong with the service, None if it is healthy."""

    async def close(self) -> None:
        """Close the connections."""


class _VisionProvider(ABC):
    """Base of both providers: a client for the current event loop, and errors as answers."""

    def __init__(
        self,
        provider_id: str,
        base_url: str | None = None,
        timeout: float | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.provider_id = provider_id
        self._new_client = partial(
            AsyncVisionEncoderClient, base_url, timeout=timeout, transport=transport
        )
        self._client = self._new_client()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.base_url = self._client.base_url

    async def call(self, request: RouterRequest) -> RouterResponse:
        """Answer a request; after a failure `ok` is false and `error` says why."""
        started = perf_counter()
        data, problem, metadata = None, None, {}
        try:
            data = await self._answer(self._here(), request)
        except VisionEncoderError as error:
            problem, metadata = str(error), _about(error)
        except Exception as error:
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
        """Return what is wrong with the service, None if it is healthy."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await self._here().health()
        except TimeoutError:
            return f"no answer from {self.base_url} within {HEALTH_SECONDS:g} s"
        except VisionEncoderError as error:
            return str(error)
        return None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _here(self) -> AsyncVisionEncoderClient:
        """Return a client for this event loop: connections belong to the loop that opened them."""
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            self._client = self._new_client()
        self._loop = loop
        return self._client

    @abstractmethod
    async def _answer(
        self, client: AsyncVisionEncoderClient, request: RouterRequest
    ) -> dict[str, Any]:
        """Return `data`. Raises a `VisionEncoderError`."""

    def _failed(self, problem: str, request: RouterRequest) -> dict[str, Any] | None:
        """Return `data` of a failed request."""
        return None


class VisionEncoderProvider(_VisionProvider):
    """Embeds: `payload.operation` is `embed_text` or `embed_image`.

    The text is `payload.text`, otherwise the message. The image is one of `payload.image_url`,
    `image_path` (a file on this machine) and `image_base64`. `data` is the answer of `/embed/text`.
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
                raise InvalidInput("embed_text needs a text: payload.text, or the message")
            embedded: dict[str, Any] = await client.call(
                "POST", "/embed/text", json={"text": text, **body}
            )
        elif operation == "embed_image":
            picture = await _picture(request)
            if picture is None:
                raise InvalidInput(f"embed_image needs one of payload.{', '.join(_PICTURES)}")
            embedded = await client.call("POST", "/embed/image", json={**picture, **body})
        else:
            raise InvalidInput(
                f"payload.operation is {operation!r}; allowed: embed_text, embed_image"
            )
        if "embedding" not in embedded:
            raise VisionEncoderError(
                f"{self.base_url} answered without an embedding. Check VISION_ENCODER_URL",
                code="bad_answer",
            )
        return embedded


class VisionRagProvider(_VisionProvider):
    """Searches: by the picture of the payload if it has one, otherwise by the message.

    The picture is one of `payload.image_url`, `image_path` (a file on this machine) and
    `image_base64`. `payload` may have `top_k`, `filter`, `collection` and `language` (uk or en, of
    `formatted_text`; the message's language by default). The search is among the pictures of
    `dao_id` only (`default` if there is none). `data` is `{success, count, images: [{id, score,
    path, metadata}], formatted_text}`, after a failure too.
    """

    async def _answer(
        self, client: AsyncVisionEncoderClient, request: RouterRequest
    ) -> dict[str, Any]:
        given = {name: request.payload.get(name) for name in _OPTIONS}
        options: Any = {name: value for name, value in given.items() if value is not None}
        options.setdefault("language", _language(request))
        options["dao_id"] = DEFAULT_DAO_ID if request.dao_id is None else request.dao_id
        picture = await _picture(request)
        if picture is not None:
            return _found(await client.search(image=picture, **options))
        if not request.message:
            raise InvalidInput(
                "image_search needs a query: the message, or one of payload." + ", ".join(_PICTURES)
            )
        return _found(await client.search(request.message, **options))

    def _failed(self, problem: str, request: RouterRequest) -> dict[str, Any]:
        return search_failed(problem, _language(request))


def build_provider_registry() -> dict[str, Provider]:
    """Return the providers by their ids, for the service at VISION_ENCODER_URL."""
    providers: tuple[Provider, ...] = (
        VisionEncoderProvider("vision_encoder"),
        VisionRagProvider("vision_rag"),
    )
    return {provider.provider_id: provider for provider in providers}


def search_failed(problem: str, language: str) -> dict[str, Any]:
    """Return `data` of a search that failed."""
    text = explain_search_failure(problem, language)
    return _found(SearchResponse(success=False, hits=[], formatted_text=text))


def _found(answer: SearchResponse) -> dict[str, Any]:
    """Return `data` of a search: `{success, count, images, formatted_text}`."""
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
    """Return `en` for a message in Latin letters only, otherwise `uk`."""
    letters = [character for character in message if character.isalpha()]
    return "en" if letters and all(character < "\u0250" for character in letters) else "uk"


def _language(request: RouterRequest) -> str:
    return str(request.payload.get("language") or language_of(request.message or ""))


async def _picture(request: RouterRequest) -> dict[str, str] | None:
    given = {name: request.payload[name] for name in _PICTURES if request.payload.get(name)}
    if len(given) > 1:
        raise InvalidInput(f"give only one of payload.{', '.join(given)}")
    for name, value in given.items():
        if not isinstance(value, str):
            raise InvalidInput(f"payload.{name} must be a text, not {type(value).__name__}")
        if name == "image_path":
            data = await asyncio.to_thread(_read, Path(value))
            return {"image_base64": base64_of(data)}
        return {"image_url": value} if name == "image_url" else {"image_base64": value}
    return None


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe or a device may never end
            raise InvalidInput(f"there is no file {path} where the router runs")
        if path.stat().st_size > LARGEST_FILE:
            raise InvalidInput(f"{path} has more than {LARGEST_FILE:,} bytes, the limit")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def _about(error: VisionEncoderError) -> dict[str, Any]:
    about = {"code": error.code, "status": error.status, "retry_after": error.retry_after}
    return {name: value for name, value in about.items() if value is not None}
