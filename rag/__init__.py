"""Image search: index pictures, find them by text, by image or by both.

from rag import Examples, SearchRequest, index_image, search, search_images_by_text

index_image("42", "cat.jpg", dao_id="my-dao")
search_images_by_text("a red cat", dao_id="my-dao")
search(SearchRequest(text="a cat", negative=Examples(text="at night"))).formatted_text
"""

from rag.agent import format_image_search_results_for_agent
from rag.api import index_image, search, search_images_by_image, search_images_by_text
from rag.backends import Backend, LocalBackend, RemoteBackend, identity_of, image_example
from rag.errors import RagError
from rag.pictures import Picture, PictureIndex
from rag.schemas import Examples, Hit, ImageExample, SearchRequest, SearchResponse, StatsResponse
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
