"""Image search: index pictures, find them by text, by image or by both.

from rag import Examples, SearchRequest, index_image, search, search_images_by_text

index_image("42", "cat.jpg", dao_id="my-dao")
search_images_by_text("a red cat", dao_id="my-dao")
search(SearchRequest(text="a cat", negative=Examples(text="at night"))).formatted_text

Public names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bento.contract.search import (
        Examples,
        Hit,
        ImageExample,
        SearchRequest,
        SearchResponse,
        StatsResponse,
    )
    from rag.api import index_image, search, search_images_by_image, search_images_by_text
    from rag.errors import RagError
    from rag.indexing.backends import (
        Backend,
        LocalBackend,
        RemoteBackend,
        identity_of,
        image_example,
    )
    from rag.pictures.index import Picture, PictureIndex
    from rag.search.agent import format_image_search_results_for_agent
    from rag.settings import RagSettings

__all__ = [
    "Backend",
    "Examples",
    "Hit",
    "ImageExample",
    "LocalBackend",
    "Picture",
    "PictureIndex",
    "RagError",
    "RagSettings",
    "RemoteBackend",
    "SearchRequest",
    "SearchResponse",
    "StatsResponse",
    "format_image_search_results_for_agent",
    "identity_of",
    "image_example",
    "index_image",
    "search",
    "search_images_by_image",
    "search_images_by_text",
]

_MODULES: Final = {
    **dict.fromkeys(
        ("Examples", "Hit", "ImageExample", "SearchRequest", "SearchResponse", "StatsResponse"),
        "bento.contract.search",
    ),
    **dict.fromkeys(
        ("index_image", "search", "search_images_by_image", "search_images_by_text"), "rag.api"
    ),
    **dict.fromkeys(
        ("Backend", "LocalBackend", "RemoteBackend", "identity_of", "image_example"),
        "rag.indexing.backends",
    ),
    "Picture": "rag.pictures.index",
    "PictureIndex": "rag.pictures.index",
    "RagError": "rag.errors",
    "RagSettings": "rag.settings",
    "format_image_search_results_for_agent": "rag.search.agent",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
