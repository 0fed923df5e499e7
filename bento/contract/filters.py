"""Filters on payloads, in the form of Qdrant's JSON, checked before any engine sees them.

{"must": [{"key": "tags", "match": {"any": ["cat", "dog"]}}],
 "must_not": [{"key": "indexed_at", "range": {"lt": "2026-01-01T00:00:00Z"}}]}
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from rag.errors import InvalidSearch

TENANT_FIELD: Final = "dao_id"  # the payload field with a keyword index, marked as the tenant
MAX_CONDITIONS: Final = 100  # in one filter, nested ones included
MAX_VALUES: Final = 1000  # of one `any` or `except`
MAX_NESTING: Final = 10  # filters within filters; a server's gRPC ends at about 50

Value = str | int | bool
Bound = float | datetime

_CLAUSES: Final = ("must", "should", "must_not")
_BOUNDS: Final = ("gt", "gte", "lt", "lte")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")  # half a character: JSON has it, UTF-8 not
_NAME: Final = r'(?:[\w-]+|"[^"\\\ud800-\udfff]*")'  # a server takes no other
# names joined by dots, each with [] where a list is meant: title, camera."lens type", people[].name
_KEY: Final = re.compile(rf"{_NAME}(\[\])?(\.{_NAME}(\[\])?)*")


@dataclass(frozen=True)
class MatchAny:
    """The field, or an item of it where it is a list, is one of `values`."""

    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class MatchExcept:
    """The field, or an item of it where it is a list, is something else than `values`.

    A field that is missing, null or an empty list is not. Of a field with a keyword index (and
    strings as `values`) only strings count: that is how Qdrant's index sees it.
    """

    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Range:
    """The field lies within bounds: numbers, or dates in UTC."""

    key: str
    bounds: Mapping[str, Bound]


@dataclass(frozen=True)
class IsEmpty:
    """The field is missing, null or an empty list."""

    key: str


@dataclass(frozen=True)
class IsNull:
    """The field is null, or a list with a null in it."""

    key: str


Condition = MatchAny | MatchExcept | Range | IsEmpty | IsNull


@dataclass(frozen=True)
class Filter:
    """All of `must`, at least one of `should` if there is any, none of `must_not`."""

    must: tuple[Condition | Filter, ...] = ()
    should: tuple[Condition | Filter, ...] = ()
    must_not: tuple[Condition | Filter, ...] = ()


def tenant(dao_id: str) -> Filter:
    """Return the filter that lets one tenant's pictures through."""
    return Filter(must=(MatchAny(TENANT_FIELD, (dao_id,)),))


def both(first: Filter | None, second: Filter | None) -> Filter | None:
    """Return a filter that lets through what both let through; None lets everything through."""
    if first is None or second is None:
        return first or second
    return Filter(must=(first, second))


def names_of(key: str) -> list[str]:
    """Return the names that a key joins by dots, without their quotes."""
    return [name.strip('"') for name in re.findall(_NAME, key)]


def parse_filter(data: Any) -> Filter:
    """Return the filter that Qdrant's JSON form describes.

    Raises `InvalidSearch`, which names the place, what is wrong there and what is allowed.
    """
    return _Parser().filter(data, "filter")


class _Parser:
    def __init__(self) -> None:
        self._conditions = 0

    def filter(self, data: Any, where: str, nesting: int = 1) -> Filter:
        _check_keys(data, where, _CLAUSES)
        if nesting > MAX_NESTING:
            raise InvalidSearch(f"the filter is nested deeper than {MAX_NESTING} levels")
        return Filter(**{clause: self._clause(data, clause, where, nesting) for clause in _CLAUSES})

    def _clause(
        self, data: Mapping[str, Any], clause: str, where: str, nesting: int
    ) -> tuple[Condition | Filter, ...]:
        given = data.get(clause)
        if given is None:
            return ()
        items = given if isinstance(given, list) else [given]  # Qdrant takes one alone, too
        return tuple(
            self._item(item, f"{where}.{clause}[{i}]", nesting) for i, item in enumerate(items)
        )

    def _item(self, data: Any, where: str, nesting: int) -> Condition | Filter:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise InvalidSearch(f"the filter has more than {MAX_CONDITIONS} conditions")
        if isinstance(data, Mapping) and data.keys() & set(_CLAUSES):
            return self.filter(data, where, nesting + 1)
        return _condition(data, where)


def _condition(data: Any, where: str) -> Condition:
    allowed = ("key", "match", "range", "is_empty", "is_null")
    _check_keys(data, where, allowed)
    kinds = [kind for kind in allowed[1:] if kind in data]
    if len(kinds) != 1:
        raise InvalidSearch(f"{where} needs exactly one of match, range, is_empty, is_null")
    kind = kinds[0]
    if kind in ("is_empty", "is_null"):
        _check_keys(data, where, (kind,))
        _check_keys(data[kind], f"{where}.{kind}", ("key",))
        key = _key(data[kind], f"{where}.{kind}")
        return IsEmpty(key) if kind == "is_empty" else IsNull(key)
    key = _key(data, where)
    if kind == "range":
        return Range(key, _bounds(data["range"], f"{where}.range"))
    return _match(key, data["match"], f"{where}.match")


def _match(key: str, data: Any, where: str) -> MatchAny | MatchExcept:
    allowed = ("value", "any", "except")
    _check_keys(data, where, allowed)
    if len(data) != 1:
        raise InvalidSearch(f"{where} needs exactly one of {', '.join(allowed)}")
    if "value" in data:
        return MatchAny(key, (_value(data["value"], f"{where}.value"),))
    name = "any" if "any" in data else "except"
    values = _values(data[name], f"{where}.{name}")
    return MatchAny(key, values) if name == "any" else MatchExcept(key, values)


def _values(data: Any, where: str) -> tuple[Value, ...]:
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_VALUES:
        raise InvalidSearch(f"{where} must be a list of 1 to {MAX_VALUES} values")
    values = tuple(_value(value, f"{where}[{i}]") for i, value in enumerate(data))
    if len({type(value) for value in values}) > 1 or isinstance(values[0], bool):
        raise InvalidSearch(f"{where} must be all strings or all whole numbers")
    return values


def _value(data: Any, where: str) -> Value:
    if isinstance(data, str) and _SURROGATE.search(data) is None:
        return data
    if isinstance(data, int) and -(2**63) <= data < 2**63:  # true and false among them
        return data
    raise InvalidSearch(
        f"{where} is {_shown(data)}; allowed are a string, a whole number of 64 bits, true and "
        "false (a number with a fraction: use range)"
    )


def _bounds(data: Any, where: str) -> dict[str, Bound]:
    _check_keys(data, where, _BOUNDS)
    bounds = {name: _bound(value, f"{where}.{name}") for name, value in data.items()}
    if not bounds or len({isinstance(bound, datetime) for bound in bounds.values()}) > 1:
        raise InvalidSearch(f"{where} needs some of {', '.join(_BOUNDS)}: all numbers or all dates")
    return bounds


def _bound(data: Any, where: str) -> Bound:
    with suppress(ValueError, OverflowError):  # the latter of 10**400, and of years before 1
        if isinstance(data, str):
            date = datetime.fromisoformat(data)
            return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)
        if isinstance(data, int | float) and not isinstance(data, bool) and math.isfinite(data):
            return float(data)
    raise InvalidSearch(
        f"{where} is {_shown(data)}; allowed are a number and a date such as 2026-01-31 or "
        "2026-01-31T12:00:00Z"
    )


def _key(data: Mapping[str, Any], where: str) -> str:
    key = data.get("key")
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InvalidSearch(
            f"{where} needs a key: the name of a payload field, such as tags, camera.lens or, with "
            'quotes around other characters, "my key"'
        )
    return key


def _check_keys(data: Any, where: str, allowed: Sequence[str]) -> None:
    if not isinstance(data, Mapping):
        raise InvalidSearch(f"{where} must be an object with {', '.join(allowed)}")
    if unknown := [key for key in data if key not in allowed]:
        raise InvalidSearch(
            f"{where} has {_shown(unknown[0])}; allowed there are {', '.join(allowed)}"
        )


def _shown(data: Any) -> str:
    text = json.dumps(data, ensure_ascii=False, default=str)[:80]
    return _SURROGATE.sub("?", text)
