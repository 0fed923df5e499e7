"""What a client of the service can meet.

VisionEncoderError               status, code and the server's sentence
├── VisionEncoderConnectionError the service cannot be reached, or cut the connection
├── VisionEncoderTimeout         no answer in time
├── VisionEncoderBusy            429 or 503: try again later
├── VisionEncoderUnauthorized    401 or 403: no key, or a wrong one
└── InvalidInput                 any other 4xx: the request cannot be answered
"""

from __future__ import annotations


class VisionEncoderError(Exception):
    """Base of all errors of the client; `str(error)` is a sentence for people.

    `status` is None where there was no answer. `retry_after` is in how many seconds a busy
    service wants to be asked again, if it said.
    """

    code = "error"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or self.code
        self.retry_after = retry_after


class VisionEncoderConnectionError(VisionEncoderError):
    code = "connection_cut"  # or unreachable


class VisionEncoderTimeout(VisionEncoderError):
    code = "timeout"


class VisionEncoderBusy(VisionEncoderError):
    pass


class VisionEncoderUnauthorized(VisionEncoderError):
    pass


class InvalidInput(VisionEncoderError):
    code = "invalid_request"


def explain_search_failure(problem: object, language: str = "uk") -> str:
    """Put into words for a user that pictures could not be searched, and why."""
    if language == "en":
        return f"Image search failed: {problem}"
    return f"Пошук зображень не вдався: {problem}"
