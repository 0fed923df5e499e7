"""Filters on payloads, in Qdrant's JSON form, validated before an engine translates them.

{"must": [{"key": "tags", "match": {"any": ["cat", "dog"]}}],
 "must_not": [{"key": "indexed_at", "range": {"lt": "2026-01-01T00:00:00Z"}}]}
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from bento.contract.base import Request
from bento.contract.limits import MAX_CONDITIONS, MAX_FILTER_VALUES, MAX_NESTING, MAX_VALUES

TENANT_FIELD: Final = "dao_id"  # the payload field that Qdrant indexes as the tenant

_CLAUSES: Final = ("must", "should", "must_not")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")  # allowed in JSON, but not in UTF-8
_NAME: Final = r'(?:[\w-]+|"[^"\\\ud800-\udfff]*")'  # as a Qdrant server accepts it
# Names joined by dots; [] follows the name of a list: title, camera."lens type", people[].name
_KEY: Final = re.compile(rf"{_NAME}(\[\])?(\.{_NAME}(\[\])?)*")


def _key(given: Any) -> str:
    if isinstance(given, str) and _KEY.fullmatch(given):
        return given
    raise ValueError(
        f"{_shown(given)} is not a valid key: give the name of a payload field, such as tags or "
        'camera.lens; put a name with other characters in quotes, such as "my key"'
    )


def _value(given: Any) -> Any:
    if isinstance(given, str) and _SURROGATE.search(given) is None:
        return given
    if isinstance(given, int) and -(2**63) <= given < 2**63:  # includes true and false
        return given
    raise ValueError(
        f"{_shown(given)} is not allowed: give a string, a 64-bit integer, true or false; "
        "for numbers with a fraction use range"
    )


def _values(given: Any) -> list[Any]:
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_VALUES:
        raise ValueError(f"give a list of 1 to {MAX_VALUES} values")
    values = [_value(value) for value in given]
    if len({type(value) for value in values}) > 1 or isinstance(values[0], bool):
        raise ValueError("give only strings or only integers")
    return values


def _bound(given: Any) -> float | datetime:
    with suppress(ValueError, OverflowError):  # OverflowError: 10**400, or a UTC year below 1
        if isinstance(given, str):
            given = datetime.fromisoformat(given)
        if isinstance(given, datetime):
            return given.astimezone(UTC) if given.tzinfo else given.replace(tzinfo=UTC)
        if isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given):
            return float(given)
    raise ValueError(
        f"{_shown(given)} is not allowed: give a number, or a date such as 2026-01-31 or "
        "2026-01-31T12:00:00Z"
    )


def _shown(given: Any) -> str:
    text = json.dumps(given, ensure_ascii=False, default=str)[:80]
    return _SURROGATE.sub("?", text)


Key = Annotated[str, BeforeValidator(_key), Field(examples=["tags"])]
Value = str | int | bool
_Values = Annotated[list[str] | list[int], BeforeValidator(_values)]
_Value = Annotated[Value, BeforeValidator(_value)]
_Bound = Annotated[
    float | datetime,
    BeforeValidator(_bound),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "format": "date-time"}]}),
]


class Part(Request):
    """Base of all parts of a filter. Its errors list the allowed fields."""

    @model_validator(mode="before")
    @classmethod
    def _object_with_known_fields(cls, given: Any) -> Any:
        allowed = [field.alias or name for name, field in cls.model_fields.items()]
        if not isinstance(given, dict | Part):
            raise ValueError(f"give an object with {', '.join(allowed)}")
        if isinstance(given, dict):
            for name in given:
                if name not in allowed:
                    raise ValueError(
                        f"{_shown(name)} is not allowed here: give {', '.join(allowed)}"
                    )
        return given


class Condition(Part):
    """Base of all conditions on a payload field."""


class Match(Part):
    """Exactly one of `value`, `any` and `except`."""

    model_config = ConfigDict(populate_by_name=True)

    value: _Value = Field("", description="The field, or an item of its list, is this value.")
    any: _Values = Field(
        [], description="The field, or an item of its list, is one of these values."
    )
    except_: _Values = Field(
        [],
        alias="except",
        description="The field, or an item of its list, is none of these values.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Match:
        if len(self.model_fields_set) != 1:
            raise ValueError("give exactly one of value, any and except")
        return self

    @model_serializer
    def _as_given(self) -> dict[str, Any]:
        if "value" in self.model_fields_set:
            return {"value": self.value}
        return {"except" if self.excludes else "any": self.values}

    @property
    def excludes(self) -> bool:
        """Whether the field must be none of the values."""
        return "except_" in self.model_fields_set

    @property
    def values(self) -> list[Value]:
        if "value" in self.model_fields_set:
            return [self.value]
        return [*(self.except_ if self.excludes else self.any)]


class MatchCondition(Condition):
    """The field matches; if it is a list, at least one item matches.

    `except` never matches a field that is missing, null or an empty list. If the field has a
    keyword index and the values are strings, only strings match, as in Qdrant's index.
    """

    key: Key
    match: Match


class Range(Part):
    """At least one bound: all numbers or all dates. A date without an offset is in UTC."""

    gt: _Bound | None = None
    gte: _Bound | None = None
    lt: _Bound | None = None
    lte: _Bound | None = None

    @property
    def bounds(self) -> dict[str, float | datetime]:
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: bound for name, bound in given.items() if bound is not None}

    @model_validator(mode="after")
    def _some_of_one_kind(self) -> Range:
        if len({type(bound) for bound in self.bounds.values()}) != 1:
            raise ValueError("give some of gt, gte, lt and lte: all numbers or all dates")
        return self


class RangeCondition(Condition):
    """The field is within the bounds; if it is a list, at least one item is."""

    key: Key
    range: Range


class FieldName(Part):
    """The payload field of a condition without values."""

    key: Key


class IsEmptyCondition(Condition):
    """The field is missing, null or an empty list."""

    is_empty: FieldName


class IsNullCondition(Condition):
    """The field is null, or a list that contains null."""

    is_null: FieldName


def _kind(given: Any) -> str | None:
    """Return the tag of a condition; None unless exactly one field names its kind."""
    if isinstance(given, Part):
        given = given.model_fields_set
    if not isinstance(given, Mapping | set):
        return None
    if any(clause in given for clause in _CLAUSES):
        return "<filter>"
    kinds = [kind for kind in ("match", "range", "is_empty", "is_null") if kind in given]
    return f"<{kinds[0]}>" if len(kinds) == 1 else None


def _one_or_many(given: Any) -> Any:
    """Wrap a single condition in a list and turn null into an empty list, as Qdrant does."""
    if isinstance(given, tuple):
        return list(given)
    return [] if given is None else given if isinstance(given, list) else [given]


AnyCondition = Annotated[
    Annotated[MatchCondition, Tag("<match>")]
    | Annotated[RangeCondition, Tag("<range>")]
    | Annotated[IsEmptyCondition, Tag("<is_empty>")]
    | Annotated[IsNullCondition, Tag("<is_null>")]
    | Annotated["Filter", Tag("<filter>")],
    Discriminator(
        _kind,
        custom_error_type="condition",
        custom_error_message="give an object with must, should or must_not, or with exactly one of "
        "match, range, is_empty and is_null",
    ),
]
_Clause = Annotated[
    list[AnyCondition],
    BeforeValidator(_one_or_many, json_schema_input_type=AnyCondition | list[AnyCondition] | None),
]


class Filter(Part):
    """All of `must`, at least one of `should` (unless it is empty), and none of `must_not`."""

    must: _Clause = Field(default_factory=list)
    should: _Clause = Field(default_factory=list)
    must_not: _Clause = Field(default_factory=list)


def _bounded(given: Any) -> Any:
    """Reject a filter with too many levels, conditions or values before pydantic parses it."""
    count, values, level = 0, 0, [given]
    for _ in range(MAX_NESTING):
        inner: list[Any] = []
        for part in level:
            if isinstance(part, Mapping):
                for clause in _CLAUSES:
                    inner += _one_or_many(part.get(clause))
        count += len(inner)
        if count > MAX_CONDITIONS:
            raise ValueError(f"the filter has more than {MAX_CONDITIONS} conditions, the limit")
        matches = [part["match"] for part in inner if isinstance(part, Mapping) and "match" in part]
        lists = [one for match in matches if isinstance(match, Mapping) for one in match.values()]
        values += sum(len(one) for one in lists if isinstance(one, list))
        if values > MAX_FILTER_VALUES:
            raise ValueError(f"the filter has more than {MAX_FILTER_VALUES:,} values, the limit")
        level = [part for part in inner if isinstance(part, Mapping) and part.keys() & {*_CLAUSES}]
    if level:
        raise ValueError(f"the filter is nested deeper than {MAX_NESTING} levels, the limit")
    return given


BoundedFilter = Annotated[Filter, BeforeValidator(_bounded)]
_FILTER: Final = TypeAdapter[Filter](BoundedFilter)


def parse_filter(given: Any) -> Filter:
    """Parse a filter in Qdrant's JSON form. Raises `ValidationError`."""
    return _FILTER.validate_python(given)


# These functions skip validation: the project's own filters may have more values than a client's.


def match_any(key: str, values: Iterable[Value]) -> MatchCondition:
    """Require that a field, or an item of its list, is one of the values."""
    listed: Any = list(values)
    return MatchCondition.model_construct(key=key, match=Match.model_construct(any=listed))


def match_except(key: str, values: Iterable[Value]) -> MatchCondition:
    """Require that a field, or an item of its list, is none of the values."""
    listed: Any = list(values)
    return MatchCondition.model_construct(key=key, match=Match.model_construct(except_=listed))


def is_empty(key: str) -> IsEmptyCondition:
    """Require that a field is missing, null or an empty list."""
    return IsEmptyCondition.model_construct(is_empty=FieldName.model_construct(key=key))


def tenant(dao_id: str) -> Filter:
    """Require that a picture belongs to a tenant."""
    return all_of(match_any(TENANT_FIELD, [dao_id]))


def any_of(*conditions: Condition | Filter) -> Filter:
    """Require at least one of the conditions; without conditions, everything passes."""
    return Filter.model_construct(should=_listed(conditions))


def all_of(*conditions: Condition | Filter) -> Filter:
    """Require all conditions."""
    return Filter.model_construct(must=_listed(conditions))


def none_of(*conditions: Condition | Filter) -> Filter:
    """Require that no condition is true."""
    return Filter.model_construct(must_not=_listed(conditions))


def _listed(conditions: Iterable[Condition | Filter]) -> Any:
    return list(conditions)


def both(first: Filter | None, second: Filter | None) -> Filter | None:
    """Combine two filters so that both must pass; None passes everything."""
    if first is None or second is None:
        return first or second
    return all_of(first, second)


def names_of(key: str) -> list[str]:
    """Split a key into its names, without quotes."""
    return [name.strip('"') for name in re.findall(_NAME, key)]
