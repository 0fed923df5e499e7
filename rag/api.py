"""The library calls: index a picture, find pictures by text or by image.

They go through the running service at VISION_ENCODER_URL, or through a `backend` that is
handed in (`LocalBackend` runs an encoder in this process).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rag.backends import Backend, RemoteBackend
from rag.errors import InvalidSearch
from rag.pictures import Hit, Picture
from rag.settings import RagSettings
from router_client import VisionEncoderClient


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

    Indexing the same id again replaces the picture; returns False when this very picture
    was there already. Raises `InvalidSearch` for a file that cannot be read, and what the
    backend raises.
    """
    path = Path(image_path)
    picture = Picture(image_id, _read(path), str(path), dao_id, metadata or {})
    with _backend(backend) as target:
        return target.index(picture, collection_name or RagSettings().image_search_collection)


def search_images_by_text(
    query: str,
    dao_id: str | None = None,
    top_k: int | None = None,
    collection_name: str | None = None,
    *,
    backend: Backend | None = None,
) -> list[Hit]:
    """Return the pictures most similar to a text, best first.

    `dao_id` restricts the search to one tenant; `top_k` is IMAGE_SEARCH_DEFAULT_TOP_K (5)
    unless given.
    """
    return _search(query, dao_id, top_k, collection_name, backend)


def search_images_by_image(
    image_path: str | Path,
    dao_id: str | None = None,
    top_k: int | None = None,
    collection_name: str | None = None,
    *,
    backend: Backend | None = None,
) -> list[Hit]:
    """Return the pictures most similar to the picture file at `image_path`, best first."""
    return _search(_read(Path(image_path)), dao_id, top_k, collection_name, backend)


def _search(
    query: str | bytes,
    dao_id: str | None,
    top_k: int | None,
    collection_name: str | None,
    backend: Backend | None,
) -> list[Hit]:
    settings = RagSettings()
    with _backend(backend) as target:
        return target.search(
            query,
            collection_name or settings.image_search_collection,
            top_k=settings.image_search_default_top_k if top_k is None else top_k,
            dao_id=dao_id,
        )


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
