"""What can go wrong with a request, and with loading a model.

EncoderError               status, code and a sentence for people
├── InvalidInput           400  unusable input
├── BrokenImage            400  an image that cannot be decoded
├── TooLarge               413  more bytes or pixels than allowed
├── NotAnImage             415  bytes that are no supported picture
├── UnsupportedMediaType   415  a body of a type that the route does not take
├── UrlRefused             422  a URL that may not be fetched
├── UrlFailed              422  a URL that could not be fetched
├── NotReady               503  the model is loading, or its device does not answer
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


class NotReady(EncoderError):
    status = 503
    code = "not_ready"


class ModelLoadError(EncoderError):
    code = "model_load_error"
