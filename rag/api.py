"""The library calls: index a picture, and find pictures by text, by image or by both.

The calls use the service at VISION_ENCODER_URL, unless the caller passes a `backend`.
`LocalBackend` runs an encoder in this process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from bento.contract.errors import InvalidSearch, VisionError, describe
from bento.contract.search import Hit, SearchRequest, SearchResponse, degraded, image_example
from rag.indexing.backends import Backend, RemoteBackend
from rag.indexing.sources import absolute
from rag.pictures.index import Picture
from rag.settings import RagSettings
from router_client import VisionEncoderClient

# With these statuses, search is unavailable. None: the service did not answer.
_UNAVAILABLE: Final = frozenset({404, 409, 429, 503, None})


def index_image(
    image_id: str,
    image_path: str | Path,
    dao_id: str,
    metadata: Mapping[str, Any] | None = None,
    collection_name: str | None = None,
    *,
    backend: Backend | None = None,
) -> bool:
    """Index the picture file at `image_path` under `image_id` for one tenant.

    Indexing the same id again replaces the picture. Returns False if the collection already holds
    the same picture and metadata. Raises `InvalidSearch` if the file cannot be read, and the
    backend's errors.
    """
    path = Path(image_path)
    picture = Picture(image_id, _read(path), absolute(str(path)), dao_id, metadata or {})
    collection = collection_name or RagSettings().image_search_collection
    with _backend(backend) as target:
        return target.index([picture], collection) != ["unchanged"]


def search(request: SearchRequest, *, backend: Backend | None = None) -> SearchResponse:
    """Find pictures by texts, images or both, with filters, paging, groups and diversity.

    When search is unavailable, the answer has `success` false and the reason in `error`: there is
    no such collection, it holds another model's vectors, or Qdrant or the service is busy or
    unreachable. Raises `InvalidSearch` for an invalid request; with a service,
    `router_client.InvalidInput`.
    """
    try:
        with _backend(backend) as target:
            return target.search(request)
    except VisionError as error:
        if error.status not in _UNAVAILABLE:
            raise
        return degraded(error, request.language)


def search_images_by_text(
    query: str,
    dao_id: str | None = None,
    top_k: int | None = None,
    collection_name: str | None = None,
    *,
    backend: Backend | None = None,
) -> list[Hit]:
    """Return the pictures most similar to a text, best first.

    `dao_id` restricts the search to one tenant. `top_k` defaults to IMAGE_SEARCH_DEFAULT_TOP_K
    (5). Unlike `search`, this call raises when search is unavailable.
    """
    return _hits(backend, text=query, dao_id=dao_id, top_k=top_k, collection=collection_name)


def search_images_by_image(
    image_path: str | Path,
    dao_id: str | None = None,
    top_k: int | None = None,
    collection_name: str | None = None,
    *,
    backend: Backend | None = None,
) -> list[Hit]:
    """Return the pictures most similar to the picture file at `image_path`, best first.

    Parameters and errors are those of `search_images_by_text`. Raises `InvalidSearch` if the file
    cannot be read.
    """
    image = image_example(_read(Path(image_path)))
    return _hits(backend, image=image, dao_id=dao_id, top_k=top_k, collection=collection_name)


def _hits(backend: Backend | None, **fields: Any) -> list[Hit]:
    try:
        request = SearchRequest(**fields)
    except ValidationError as error:
        raise InvalidSearch(describe(error)) from None
    with _backend(backend) as target:
        return target.search(request).hits


@contextmanager
def _backend(given: Backend | None) -> Iterator[Backend]:
    if given is not None:
        yield given
        return
    remote = RemoteBackend(VisionEncoderClient())
    try:
        yield remote
    finally:
        remote.close()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidSearch(f"cannot read {path}: {error.strerror}") from None
