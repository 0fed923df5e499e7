"""The one error tree, and one way to say what is wrong with a request or a variable.

VisionError                       a sentence, `status`, `code`, `retry_after`
├── ServiceError                  what the service answers: only these are rendered
│   ├── EncoderError
│   │   ├── InvalidRequest        400  unusable input
│   │   ├── BrokenImage           400  an image that cannot be decoded
│   │   ├── Unauthorized          401  no key, or a wrong one
│   │   ├── ForeignPage           403  a page of another site, on a service without a key
│   │   ├── ModelNotFound         404  a model other than the one served
│   │   ├── TooSlow               408  a body that did not arrive in time
│   │   ├── TooLarge              413  more bytes, pixels or items than allowed
│   │   ├── NotAnImage            415  bytes that are no supported picture
│   │   ├── UnsupportedMediaType  415  a content type that the route does not take
│   │   ├── UrlRefused            422  a URL that may not be fetched
│   │   ├── UrlFailed             422  a URL that could not be fetched
│   │   ├── Busy                  429  the queue is full: retry in `retry_after` seconds
│   │   ├── NotReady              503  the model is loading, or the device does not answer
│   │   ├── TimedOut              504  a request that took too long
│   │   └── ModelLoadError             settings that give no working model (at start)
│   └── RagError
│       ├── InvalidSearch         400  unusable input
│       ├── ImageNotFound         404  no such image
│       ├── CollectionNotFound    404  no such collection
│       ├── CollectionMismatch    409  the collection holds another model's vectors
│       ├── SearchDisabled        503  this service runs without search
│       ├── StoreLocked           503  another process owns the embedded store
│       └── StoreUnavailable      503  Qdrant does not answer
│           └── StoreFull         503  the disk of the embedded store is full
└── VisionEncoderError            what a client met; `status` is None without an answer
    ├── VisionEncoderConnectionError   the service is unreachable, or cut the connection
    ├── VisionEncoderTimeout           no answer in time
    ├── VisionEncoderBusy              429 or 503: try again later
    ├── VisionEncoderUnauthorized      401 or 403: no key, or a wrong one
    └── InvalidInput                   any other 4xx, and what is refused before it is sent
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import ValidationError

_SHOWN: Final = 10  # problems of one request
_SECRET: Final = ("KEY", "URL")  # of variables whose values are not shown: passwords in a URL


class VisionError(Exception):
    """Base of all errors of this project; `str(error)` says what was wrong and what to do.

    `status` is the HTTP status, None where there is none. `code` is stable and in snake_case.
    `retry_after` is in how many seconds to try again, None where nobody said.
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
    """Base of what the service answers with."""

    status: int = 500
    code = "internal_error"


class EncoderError(ServiceError):
    """Base of what embedding raises."""


class InvalidRequest(EncoderError):
    status = 400
    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param  # the field that is wrong, if it is one; for OpenAI's shape


class BrokenImage(EncoderError):
    status = 400
    code = "broken_image"


class Unauthorized(EncoderError):
    status = 401
    code = "unauthorized"


class ForeignPage(EncoderError):
    status = 403
    code = "foreign_page"


class ModelNotFound(EncoderError):
    status = 404
    code = "model_not_found"


class TooSlow(EncoderError):
    status = 408
    code = "too_slow"


class TooLarge(EncoderError):
    status = 413
    code = "too_large"


class NotAnImage(EncoderError):
    status = 415
    code = "not_an_image"


class UnsupportedMediaType(EncoderError):
    status = 415
    code = "unsupported_media_type"


class UrlRefused(EncoderError):
    status = 422
    code = "url_refused"


class UrlFailed(EncoderError):
    status = 422
    code = "url_failed"


class Busy(EncoderError):
    status = 429
    code = "busy"
    retry_after = 1


class NotReady(EncoderError):
    status = 503
    code = "not_ready"


class TimedOut(EncoderError):
    status = 504
    code = "timeout"


class ModelLoadError(EncoderError):
    code = "model_load_error"


class RagError(ServiceError):
    """Base of what image search raises."""

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


class VisionEncoderError(VisionError):
    """Base of what a client raises; the sentence is the service's where it answered."""


class VisionEncoderConnectionError(VisionEncoderError):
    """The service is unreachable, or it cut the connection. `status` is None."""

    code = "connection_cut"  # or unreachable


class VisionEncoderTimeout(VisionEncoderError):
    """The service did not answer within the timeout. `status` is None."""

    code = "timeout"


class VisionEncoderBusy(VisionEncoderError):
    """The service answered 429 or 503: try again, after `retry_after` seconds if it said so."""


class VisionEncoderUnauthorized(VisionEncoderError):
    """The service answered 401 or 403: the API key is missing or wrong."""


class InvalidInput(VisionEncoderError):
    """The service answered another 4xx, or the client refused to send the request."""

    code = "invalid_request"


def describe(error: ValidationError) -> str:
    """Say in one sentence which fields of a request, or which variables, are wrong and why.

    Variables of settings are named in capitals, with their value unless it may hold a secret.
    """
    return describe_details(error.errors(), variables=error.title.endswith("Settings"))


def describe_details(details: Sequence[Any], *, variables: bool = False) -> str:
    """Do what `describe` does, from pydantic's list of details; the first ten are told."""
    said = [_variable(one) if variables else _field(one) for one in details[:_SHOWN]]
    if more := len(details) - len(said):
        said.append(f"and {more:,} more")
    return "; ".join(said)


def place(detail: Any) -> str:
    """Return the path of a detail's field, such as `texts.1`; empty for the whole body."""
    parts = [str(part) for part in detail.get("loc", ())]
    if detail.get("type") == "extra_forbidden":  # whatever its name, it is a field
        return ".".join([*(part for part in parts[:-1] if part not in _NO_FIELDS), *parts[-1:]])
    return ".".join(part for part in parts if part not in _NO_FIELDS)


# What pydantic puts into the path of a field: BentoML's root, and the tags of the conditions.
_NO_FIELDS: Final = frozenset({"root", "<match>", "<range>", "<is_empty>", "<is_null>", "<filter>"})
_WORDS: Final[dict[str, str]] = {"extra_forbidden": "is not a field of this request"}


def _field(detail: Any) -> str:
    where, what = place(detail), _what(detail)
    return f"{where}: {what}" if where else what


def _variable(detail: Any) -> str:
    name = str(detail["loc"][0]).upper() if detail["loc"] else ""
    shown = "" if name.endswith(_SECRET) else f"={detail['input']}"
    return f"{name}{shown}: {_what(detail)}" if name else _what(detail)


def _what(detail: Any) -> str:
    given = str(detail.get("msg", "is not valid")).removeprefix("Value error, ")
    return _WORDS.get(detail.get("type", ""), given)
