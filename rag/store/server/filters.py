"""Translate filters for a Qdrant server."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from qdrant_client import models

from bento.contract.filters import (
    Condition,
    Filter,
    IsEmptyCondition,
    IsNullCondition,
    MatchCondition,
    RangeCondition,
)


def server_filter(filter: Filter | None) -> models.Filter | None:
    """Return the filter of `qdrant_client` that selects the same points."""
    if filter is None:
        return None
    return models.Filter(
        must=_all(filter.must), should=_all(filter.should), must_not=_all(filter.must_not)
    )


def _all(conditions: Sequence[Condition | Filter]) -> list[Any] | None:
    return [_condition(condition) for condition in conditions] or None


def _condition(condition: Condition | Filter) -> Any:
    match condition:
        case Filter():
            return server_filter(condition)
        case IsEmptyCondition(is_empty=field):
            return models.IsEmptyCondition(is_empty=models.PayloadField(key=field.key))
        case IsNullCondition(is_null=field):
            return models.IsNullCondition(is_null=models.PayloadField(key=field.key))
        case MatchCondition(key=key, match=wanted):
            return models.FieldCondition(key=key, match=_match(wanted.values, wanted.excludes))
        case RangeCondition(key=key, range=range):
            bounds: Any = range.bounds
            dates = any(isinstance(bound, datetime) for bound in bounds.values())
            kind = models.DatetimeRange if dates else models.Range
            return models.FieldCondition(key=key, range=kind(**bounds))
    raise AssertionError(f"unknown kind of condition: {condition!r}")


def _match(values: Any, excludes: bool) -> Any:
    if excludes:
        return models.MatchExcept(**{"except": values})
    return models.MatchValue(value=values[0]) if len(values) == 1 else models.MatchAny(any=values)
