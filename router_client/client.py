"""A typed client of the service's HTTP API."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from router_client.errors import (
    InvalidInput,
    VisionEncoderBusy,
    VisionEncoderConnectionError,
    VisionEncoderError,
    VisionEncoderTimeout,
)
from router_client.settings import ClientSettings


class VisionEncoderClient:
    """Embeds, indexes and searches through a running service. Thread-safe; close it after use.

    `base_url` and `timeout` (seconds) are VISION_ENCODER_URL and VISION_ENCODER_TIMEOUT
    unless given. Every call raises a `VisionEncoderError` that carries the status, the code
    and the server's sentence.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        timeout: float | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        settings = ClientSettings()
        self.base_url = base_url or settings.vision_encoder_url
        self._timeout = timeout or settings.vision_encoder_timeout
        self._http = httpx.Client(
            base_url=self.base_url,
            timeout=self._timeout,
            transport=transport or httpx.HTTPTransport(retries=2),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> dict[str, Any]:
        """Return `{status, device, model, …}`; raises `VisionEncoderBusy` when unhealthy."""
        return self._call("GET", "/health")

    def info(self) -> dict[str, Any]:
        """Return the model, its dimension and the service's limits."""
        return self._call("GET", "/info")

    def embed_text(self, text: str, *, normalize: bool = True) -> list[float]:
        """Return the embedding of a text."""
        body = {"text": text, "normalize": normalize}
        embedding: list[float] = self._call("POST", "/embed/text", json=body)["embedding"]
        return embedding

    def embed_image_bytes(self, data: bytes, *, normalize: bool = True) -> list[float]:
        """Return the embedding of a picture file's bytes."""
        answer = self._call(
            "POST",
            "/embed/image/upload",
            files={"file": ("image", data)},
            data={"normalize": str(normalize).lower()},
        )
        embedding: list[float] = answer["embedding"]
        return embedding

    def search(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Find pictures, best first: `request` and answer are those of `POST /search`.

        The answer has `hits` of `{id, score, path, payload}`, `next_offset` and
        `formatted_text`.
        """
        return self._call("POST", "/search", json=dict(request))

    def search_many(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Make many searches in one call; one that fails has `success` false and `error`."""
        body = {"searches": [dict(request) for request in requests]}
        results: list[dict[str, Any]] = self._call("POST", "/search/batch", json=body)["results"]
        return results

    def index_image(
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
    ) -> str:
        """Index a picture and return the outcome: indexed, updated or unchanged."""
        body = {
            "id": image_id,
            "image_base64": base64.b64encode(data).decode(),
            "dao_id": dao_id,
            "image_path": image_path,
            "duplicates": list(duplicates),
            "metadata": dict(metadata or {}),
            "collection": collection,
            "staged": staged,
        }
        return str(self._call("POST", "/images", json=body)["outcome"])

    def update_image(
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
        params = _given(dao_id=dao_id, collection=collection)
        path = f"/images/{quote(image_id, safe='')}"
        return bool(self._call("PATCH", path, params=params, json=body)["updated"])

    def delete_image(
        self,
        image_id: str,
        *,
        dao_id: str = "default",
        collection: str | None = None,
        staged: bool = False,
    ) -> bool:
        """Forget a picture and say whether it was there."""
        params = _given(dao_id=dao_id, collection=collection, staged="true" if staged else None)
        path = f"/images/{quote(image_id, safe='')}"
        return bool(self._call("DELETE", path, params=params)["deleted"])

    def images(
        self, collection: str, *, dao_id: str | None = None, generation: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """List what a collection holds, `{id, dao_id, path, payload}` each, page by page."""
        path = f"/collections/{quote(collection, safe='')}/images"
        start: str | None = None
        while True:
            params = _given(dao_id=dao_id, generation=generation, start=start)
            answer = self._call("GET", path, params=params)
            yield from answer["images"]
            start = answer["next"]
            if start is None:
                return

    def stats(self, collection: str) -> dict[str, Any]:
        """Return what a collection holds: points, model, dimension, generations."""
        return self._call("GET", f"/collections/{quote(collection, safe='')}")

    def publish(self, collection: str) -> dict[str, Any]:
        """Make the generation of the service's model the published one, in one step."""
        return self._call("POST", f"/collections/{quote(collection, safe='')}/publish")

    def drop(self, collection: str, generation: str) -> bool:
        """Delete a generation that is not published and say whether it was there."""
        path = f"/collections/{quote(collection, safe='')}/generations/{quote(generation, safe='')}"
        return bool(self._call("DELETE", path)["dropped"])

    def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **request)
        except httpx.TimeoutException:
            raise VisionEncoderTimeout(
                f"the vision encoder at {self.base_url} did not answer within "
                f"{self._timeout:g} s (VISION_ENCODER_TIMEOUT)"
            ) from None
        except httpx.TransportError as error:
            raise VisionEncoderConnectionError(
                f"no vision encoder answers at {self.base_url}: {error}. Start one "
                "(make serve), or set VISION_ENCODER_URL to where it runs"
            ) from None
        if response.is_success:
            answer: dict[str, Any] = response.json()
            return answer
        raise _error(response)


def _error(response: httpx.Response) -> VisionEncoderError:
    try:
        body = response.json()
        message, code = str(body["error"]), str(body["code"])
    except (ValueError, KeyError, TypeError):
        message, code = f"HTTP {response.status_code} from {response.url}", "http_error"
    status = response.status_code
    if status in (429, 503):
        return VisionEncoderBusy(message, status=status, code=code, retry_after=_seconds(response))
    if 400 <= status < 500:
        return InvalidInput(message, status=status, code=code)
    return VisionEncoderError(message, status=status, code=code)


def _seconds(response: httpx.Response) -> float | None:
    """Return what Retry-After says, where it says seconds."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


def _given(**parameters: str | None) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if value is not None}
