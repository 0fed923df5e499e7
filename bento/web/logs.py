"""Format the log: one record a line, as JSON or as text."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from starlette.requests import ClientDisconnect

from bento.contract.errors import ServiceError

logger = logging.getLogger("vision_encoder")

_SENTENCE: Final = "sentence"  # a field that replaces message and fields in text


def configure_logs(log_format: str) -> None:
    """Format the lines of this process, BentoML's own included, as LOG_FORMAT says.

    `auto` is text on handlers that write to a terminal. BentoML's write to standard output.
    """
    logger.setLevel(logging.INFO)
    for name in ("", "bentoml"):
        for handler in logging.getLogger(name).handlers:
            terminal = isinstance(handler, logging.StreamHandler) and handler.stream.isatty()
            text = terminal if log_format == "auto" else log_format == "text"
            handler.setFormatter(_TextFormatter() if text else _json_formatter())
            handler.filters.clear()  # BentoML's filter would overwrite our request_id
    # log no traceback for requests that fail validation
    logging.getLogger("bentoml._internal.server.http_app").addFilter(_is_our_fault)


def log_loaded(summary: Mapping[str, Any]) -> None:
    """Log the end of the start-up: the model, its device and dtypes, the store and the address."""
    sentence = (
        "Model loaded successfully: {model} on {device} (text {text}, image {image}), "
        "store: {store}, search page: {url}/ui"
    ).format_map(summary)
    logger.info(
        "Model loaded successfully. Embedding dimension: %d",
        summary["dimension"],
        extra={**summary, _SENTENCE: sentence},
    )


class _TextFormatter(logging.Formatter):
    """Formats a record as its time, level and message, and its fields as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        given = vars(record)
        if _SENTENCE in given:
            said = [given[_SENTENCE]]
        else:
            fields = [name for name in given if name not in RESERVED_ATTRS]
            said = [_plain(record.message), *(f"{name}={_value(given[name])}" for name in fields)]
        return " ".join([super().formatMessage(record), *said])


def _value(value: object) -> str:
    text = str(value)
    return repr(text) if " " in text else _plain(text)


def _plain(text: str) -> str:
    """Escape characters that would start another line or control the terminal."""
    return text if text.isprintable() else repr(text)


def _json_formatter() -> JsonFormatter:
    return JsonFormatter(
        "{asctime}{levelname}{name}{message}",
        style="{",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        datefmt="%Y-%m-%dT%H:%M:%S%z",
        reserved_attrs=[*RESERVED_ATTRS, _SENTENCE],
    )


def _is_our_fault(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, ValidationError | ServiceError | ClientDisconnect)
