"""Image search: index pictures, and find them by text, by image or by both.

from rag import Examples, SearchRequest, index_image, search, search_images_by_text

index_image("42", "cat.jpg", dao_id="my-dao")
search_images_by_text("a red cat", dao_id="my-dao")
search(SearchRequest(text="a cat", negative=Examples(text="at night"))).formatted_text

Each public name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bento.contract.errors import RagError
    from bento.contract.images import StatsResponse
    from bento.contract.search import (
        Examples,
        Hit,
        ImageExample,
        SearchRequest,
        SearchResponse,
        image_example,
    )
    from rag.api import index_image, search, search_images_by_image, search_images_by_text
    from rag.indexing.backends import Backend, RemoteBackend
    from rag.indexing.local import LocalBackend
    from rag.pictures.identity import identity_of
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
    "bento.contract.errors": ("RagError",),
    "bento.contract.images": ("StatsResponse",),
    "bento.contract.search": (
        "Examples",
        "Hit",
        "ImageExample",
        "SearchRequest",
        "SearchResponse",
        "image_example",
    ),
    "rag.api": ("index_image", "search", "search_images_by_image", "search_images_by_text"),
    "rag.indexing.backends": ("Backend", "RemoteBackend"),
    "rag.indexing.local": ("LocalBackend",),
    "rag.pictures.identity": ("identity_of",),
    "rag.pictures.index": ("Picture", "PictureIndex"),
    "rag.search.agent": ("format_image_search_results_for_agent",),
    "rag.settings": ("RagSettings",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
