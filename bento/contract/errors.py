"""All error classes, and sentences that describe invalid requests and settings.

VisionError
├── ServiceError                       the service answers with these errors only
│   ├── EncoderError              500
│   │   ├── InvalidRequest        400
│   │   ├── BrokenImage           400
│   │   ├── Unauthorized          401
│   │   ├── ForeignPage           403
│   │   ├── ModelNotFound         404
│   │   ├── TooSlow               408
│   │   ├── TooLarge              413
│   │   ├── NotAnImage            415
│   │   ├── UnsupportedMediaType  415
│   │   ├── UrlRefused            422
│   │   ├── UrlFailed             422
│   │   ├── Busy                  429
│   │   ├── NotReady              503
│   │   ├── TimedOut              504
│   │   └── ModelLoadError             at start only
│   └── RagError                  500
│       ├── InvalidSearch         400
│       ├── ImageNotFound         404
│       ├── CollectionNotFound    404
│       ├── CollectionMismatch    409
│       ├── SearchDisabled        503
│       ├── StoreLocked           503
│       └── StoreUnavailable      503
│           └── StoreFull         503
└── VisionEncoderError                 the client raises these errors only
    ├── VisionEncoderConnectionError
    ├── VisionEncoderTimeout
    ├── VisionEncoderBusy         429 or 503
    ├── VisionEncoderUnauthorized 401 or 403
    └── InvalidInput              other 4xx
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import ValidationError

_SHOWN: Final = 10  # problems listed in one message
_SECRET: Final = ("KEY", "URL")  # name endings of variables whose values are hidden


class VisionError(Exception):
    """Base of all errors; `str(error)` says what was wrong and what to do.

    `status` is the HTTP status; None if there was no answer. `code` is stable and in snake_case.
    `retry_after` is the number of seconds to wait before a retry; None if unknown.
    """

    status: int | None = None
    code = "error"
    retry_after: float | None = None

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = self.status if status is None else status
        self.code = code or self.code
        self.retry_after = self.retry_after if retry_after is None else retry_after


class ServiceError(VisionError):
    """Base of all errors that the service answers with."""

    status: int = 500
    code = "internal_error"


class EncoderError(ServiceError):
    """Base of all errors of embedding."""


class InvalidRequest(EncoderError):
    """The request has invalid input. `param` names the invalid field, if known."""

    status = 400
    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BrokenImage(EncoderError):
    """An image cannot be decoded."""

    status = 400
    code = "broken_image"


class Unauthorized(EncoderError):
    """The API key is missing or wrong."""

    status = 401
    code = "unauthorized"


class ForeignPage(EncoderError):
    """A page of another site sent a request to a service without an API key."""

    status = 403
    code = "foreign_page"


class ModelNotFound(EncoderError):
    """The request names a model that this service does not serve."""

    status = 404
    code = "model_not_found"


class TooSlow(EncoderError):
    """The client did not send the request body in time."""

    status = 408
    code = "too_slow"


class TooLarge(EncoderError):
    """The request exceeds a limit on bytes, pixels or items."""

    status = 413
    code = "too_large"


class NotAnImage(EncoderError):
    """The bytes are not an image of a supported format."""

    status = 415
    code = "not_an_image"


class UnsupportedMediaType(EncoderError):
    """The route does not accept the content type of the request."""

    status = 415
    code = "unsupported_media_type"


class UrlRefused(EncoderError):
    """The service does not allow the URL."""

    status = 422
    code = "url_refused"


class UrlFailed(EncoderError):
    """The service could not fetch the URL."""

    status = 422
    code = "url_failed"


class Busy(EncoderError):
    """The service sheds the request; the client may retry after `Retry-After` seconds."""

    status = 429
    code = "busy"
    retry_after = 1


class NotReady(EncoderError):
    """The model is loading, or the device does not answer."""

    status = 503
    code = "not_ready"


class TimedOut(EncoderError):
    """The service did not answer the request in time."""

    status = 504
    code = "timeout"


class ModelLoadError(EncoderError):
    """The settings do not give a working model."""

    code = "model_load_error"


class RagError(ServiceError):
    """Base of all errors of image search."""

    code = "rag_error"


class InvalidSearch(RagError):
    """The request has invalid input."""

    status = 400
    code = "invalid_request"


class ImageNotFound(RagError):
    """The index has no picture with this id."""

    status = 404
    code = "image_not_found"


class CollectionNotFound(RagError):
    """The collection does not exist."""

    status = 404
    code = "collection_not_found"


class CollectionMismatch(RagError):
    """The collection holds vectors of another model."""

    status = 409
    code = "collection_mismatch"


class SearchDisabled(RagError):
    """This service runs without search."""

    status = 503
    code = "search_disabled"


class StoreLocked(RagError):
    """Another process uses the embedded store."""

    status = 503
    code = "store_locked"


class StoreUnavailable(RagError):
    """Qdrant does not answer, or the embedded store failed."""

    status = 503
    code = "store_unavailable"


class StoreFull(StoreUnavailable):
    """The disk of the embedded store is full."""

    code = "store_full"


class VisionEncoderError(VisionError):
    """Base of all errors of the client. If the service answered, the message is the service's."""


class VisionEncoderConnectionError(VisionEncoderError):
    """The service is unreachable, or it closed the connection. `status` is None."""

    code = "connection_cut"  # or "unreachable"


class VisionEncoderTimeout(VisionEncoderError):
    """The service did not answer within the timeout. `status` is None."""

    code = "timeout"


class VisionEncoderBusy(VisionEncoderError):
    """The service answered 429 or 503; retry after `retry_after` seconds, if known."""


class VisionEncoderUnauthorized(VisionEncoderError):
    """The service answered 401 or 403, usually because the API key is missing or wrong."""


class InvalidInput(VisionEncoderError):
    """The service answered another 4xx, or the client rejected the input before sending it."""

    code = "invalid_request"


def describe(error: ValidationError) -> str:
    """Describe in one sentence which fields or variables are wrong, and why.

    Variables are named in capitals, with their values unless a value may hold a secret.
    """
    return describe_details(error.errors(), variables=error.title.endswith("Settings"))


def describe_details(details: Sequence[Any], *, variables: bool = False) -> str:
    """Describe pydantic's error details as `describe` does; list the first ten."""
    parts = [_variable(one) if variables else _field(one) for one in details[:_SHOWN]]
    if more := len(details) - len(parts):
        parts.append(f"and {more:,} more")
    return "; ".join(parts)


def place(detail: Any) -> str:
    """Return the path of the wrong field, such as `texts.1`; empty for the whole body."""
    parts = [str(part) for part in detail.get("loc", ())]
    named = len(parts)
    if detail.get("type") == "extra_forbidden":
        named -= 1  # the last part is the client's name for a field, even if it looks like a tag
    return ".".join([*(part for part in parts[:named] if part not in _NO_FIELDS), *parts[named:]])


# Parts of pydantic's paths that are not fields: BentoML's root and the tags of conditions.
_NO_FIELDS: Final = frozenset({"root", "<match>", "<range>", "<is_empty>", "<is_null>", "<filter>"})
_MESSAGES: Final[dict[str, str]] = {
    "extra_forbidden": "is not a field of this request",
    "missing": "is required",
}


def _field(detail: Any) -> str:
    path, message = place(detail), _message(detail)
    return f"{path}: {message}" if path else message


def _variable(detail: Any) -> str:
    name = str(detail["loc"][0]).upper() if detail["loc"] else ""
    shown = "" if name.endswith(_SECRET) else f"={detail['input']}"
    return f"{name}{shown}: {_message(detail)}" if name else _message(detail)


def _message(detail: Any) -> str:
    given = str(detail.get("msg", "is not valid"))
    given = given.removeprefix("Value error, ").replace(" after validation", "")
    return _MESSAGES.get(detail.get("type", ""), given)
