"""What can go wrong with a request, and with loading a model.

EncoderError               status, code and a sentence for people
├── InvalidInput           400  unusable input
├── BrokenImage            400  an image that cannot be decoded
├── Unauthorized           401  no key, or a wrong one
├── ForeignPage            403  a page of another site, where there is no key
├── ModelNotFound          404  a request that names another model than the one served
├── TooSlow                408  a body that did not come in time
├── TooLarge               413  more bytes or pixels than allowed
├── NotAnImage             415  bytes that are no supported picture
├── UnsupportedMediaType   415  a body of a type that the route does not take
├── UrlRefused             422  a URL that may not be fetched
├── UrlFailed              422  a URL that could not be fetched
├── Busy                   429  more work is queued than allowed; `retry_after` seconds
├── NotReady               503  the model is loading, or its device does not answer
├── TimedOut               504  a request that took too long
└── ModelLoadError              settings that give no working model (at start)
"""

from __future__ import annotations


class EncoderError(Exception):
    """Base of all errors of `bento`; `str(error)` says what was wrong and what is allowed."""

    status = 500
    code = "internal_error"


class InvalidInput(EncoderError):
    status = 400
    code = "invalid_request"


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

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(EncoderError):
    status = 503
    code = "not_ready"


class TimedOut(EncoderError):
    status = 504
    code = "timeout"


class ModelLoadError(EncoderError):
    code = "model_load_error"
