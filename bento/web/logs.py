"""Log one JSON object per line."""

from __future__ import annotations

import logging

from pydantic import ValidationError
from pythonjsonlogger.json import JsonFormatter
from starlette.requests import ClientDisconnect

from bento.contract.errors import ServiceError

logger = logging.getLogger("vision_encoder")


def configure_logs() -> None:
    """Log one JSON object per line, and format BentoML's own lines the same way."""
    formatter = JsonFormatter(
        "{asctime}{levelname}{name}{message}",
        style="{",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )
    logger.setLevel(logging.INFO)
    for name in ("", "bentoml"):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(formatter)
            handler.filters.clear()  # BentoML's filter would overwrite our request_id
    # log no traceback for requests that fail validation
    logging.getLogger("bentoml._internal.server.http_app").addFilter(_is_our_fault)


def _is_our_fault(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, ValidationError | ServiceError | ClientDisconnect)
