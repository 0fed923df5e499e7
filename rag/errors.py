"""What can go wrong in image search.

RagError                   status, code and a sentence for people
├── InvalidSearch          400  a value that cannot be used
├── ImageNotFound          404  no such image
├── CollectionNotFound     404  no such collection
├── CollectionMismatch     409  the collection holds another model's vectors
├── UnsupportedMediaType   415  an upload of a type that no picture has
├── SearchDisabled         503  this service runs without search
├── StoreLocked            503  another process owns the embedded store
└── StoreUnavailable       503  Qdrant does not answer
    └── StoreFull          503  the disk of the embedded store has no room
"""

from __future__ import annotations


class RagError(Exception):
    """Base of all errors of `rag`; `str(error)` says what was wrong and what is allowed."""

    status = 500
    code = "rag_error"


class InvalidSearch(RagError):
    status = 400
    code = "invalid_request"


class ImageNotFound(RagError):
    status = 404
    code = "image_not_found"


class CollectionNotFound(RagError):
    status = 404
    code = "collection_not_found"


class CollectionMismatch(RagError):
    status = 409
    code = "collection_mismatch"


class UnsupportedMediaType(RagError):
    status = 415
    code = "unsupported_media_type"


class SearchDisabled(RagError):
    status = 503
    code = "search_disabled"


class StoreLocked(RagError):
    status = 503
    code = "store_locked"


class StoreUnavailable(RagError):
    status = 503
    code = "store_unavailable"


class StoreFull(StoreUnavailable):
    code = "store_full"
