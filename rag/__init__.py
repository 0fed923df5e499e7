"""Image search: index pictures, find them by text or by image.

from rag import index_image, search_images_by_text

index_image("42", "cat.jpg", dao_id="my-dao")
search_images_by_text("a red cat", dao_id="my-dao")
"""

from rag.agent import format_image_search_results_for_agent
from rag.api import index_image, search_images_by_image, search_images_by_text
from rag.backends import Backend, LocalBackend, RemoteBackend, identity_of
from rag.errors import RagError
from rag.pictures import Hit, Picture, PictureIndex, Stats
from rag.settings import RagSettings

__all__ = [
    "Backend",
    "Hit",
    "LocalBackend",
    "Picture",
    "PictureIndex",
    "RagError",
    "RagSettings",
    "RemoteBackend",
    "Stats",
    "format_image_search_results_for_agent",
    "identity_of",
    "index_image",
    "search_images_by_image",
    "search_images_by_text",
]
