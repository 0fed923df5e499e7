"""What all requests and answers share."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from bento.contract.limits import MAX_TEXT

Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TEXT),
    Field(description="Not empty. The model truncates it at its context length."),
]

T = TypeVar("T")
# Validation of a list stops at the first bad item: a million of them would cost a million errors.
Many = Annotated[list[T], Field(fail_fast=True)]


def listed(value: Any) -> Any:
    """Let a single item stand for a list of one."""
    return value if value is None or isinstance(value, list) else [value]


class Request(BaseModel):
    """A request: unknown fields are errors, so that a typo is noticed."""

    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _no_more_than_there_are(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > len(cls.model_fields):
            allowed = ", ".join(cls.model_fields)
            raise ValueError(f"{len(given):,} fields are too many; allowed are {allowed}")
        return given


class Answer(BaseModel):
    """An answer: a client ignores fields that it does not know.

    Fields without a default make it that answer. The others have one, so that a client can read
    the answer of an older service; the service itself sends them all.
    """

    model_config = ConfigDict(
        extra="ignore", json_schema_serialization_defaults_required=True, defer_build=True
    )
