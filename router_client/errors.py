"""What a client of the service can meet.

VisionEncoderError               status, code and the server's sentence
├── VisionEncoderConnectionError the service cannot be reached
├── VisionEncoderTimeout         no answer in time
├── VisionEncoderBusy            429 or 503: try again later
└── InvalidInput                 any other 4xx: the request cannot be answered
"""

from __future__ import annotations


class VisionEncoderError(Exception):
    """Base of all errors of the client; `str(error)` is a sentence for people.

    `retry_after` is in how many seconds a busy service wants to be asked again, if it said.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str = "error",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


class VisionEncoderConnectionError(VisionEncoderError):
    pass


class VisionEncoderTimeout(VisionEncoderError):
    pass


class VisionEncoderBusy(VisionEncoderError):
    pass


class InvalidInput(VisionEncoderError):
    pass
