"""Base classes and common types of all requests and answers."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from bento.contract.limits import MAX_TEXT

# Control characters, which terminals obey; separators of lines and paragraphs; characters that
# change the direction of the text after them; surrogates, which cannot be encoded.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TEXT),
    Field(description="Must not be empty. The model truncates it at its context length."),
]

T = TypeVar("T")
# Validation stops at the first bad item, so that a list of a million bad items yields one error.
Many = Annotated[list[T], Field(fail_fast=True)]


def listed(value: Any) -> Any:
    """Wrap a single item in a list; return a list or None unchanged."""
    return value if value is None or isinstance(value, list) else [value]


def printable(text: str) -> str:
    """Return a text as one line that cannot control a terminal or the order of other text.

    The characters that could are escaped as in a Python string.
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_json(text: str) -> str:
    """Return JSON with the characters escaped that `printable` escapes; its value is the same."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Request(BaseModel):
    """Base of all requests. An unknown field is an error, so that clients notice typos."""

    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _limit_field_count(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > len(cls.model_fields):
            allowed = ", ".join(cls.model_fields)
            raise ValueError(f"{len(given):,} fields are too many; allowed fields: {allowed}")
        return given


class Answer(BaseModel):
    """Base of all answers. Clients ignore unknown fields.

    The required fields identify an answer. All other fields have defaults, so that clients can
    read the answers of older services. The service itself always sends every field.
    """

    model_config = ConfigDict(
        extra="ignore", json_schema_serialization_defaults_required=True, defer_build=True
    )
