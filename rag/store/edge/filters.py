"""Translate filters for the embedded engine."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import qdrant_edge as edge

from bento.contract.filters import (
    Condition,
    Filter,
    IsEmptyCondition,
    IsNullCondition,
    MatchCondition,
    RangeCondition,
    Value,
)


def condition_count(filter: Filter | None) -> int:
    """Return how many conditions a filter has, with nested ones."""
    if filter is None:
        return 0
    parts = [*filter.must, *filter.should, *filter.must_not]
    return sum(condition_count(part) if isinstance(part, Filter) else 1 for part in parts)


def edge_filter(filter: Filter | None) -> Any:
    """Return the filter of `qdrant_edge` that selects the same points."""
    if filter is None:
        return None
    return edge.Filter(
        must=_all(filter.must), should=_all(filter.should), must_not=_all(filter.must_not)
    )


def _all(conditions: Sequence[Condition | Filter]) -> list[Any] | None:
    return [_condition(condition) for condition in conditions] or None


def _condition(condition: Condition | Filter) -> Any:
    match condition:
        case Filter():
            return edge_filter(condition)
        case IsEmptyCondition(is_empty=field):
            return edge.IsEmptyCondition(field.key)
        case IsNullCondition(is_null=field):
            return edge.IsNullCondition(field.key)
        case MatchCondition(key=key, match=wanted):
            values: Any = wanted.values
            one = edge.MatchExcept(values) if wanted.excludes else _any(values)
            return edge.FieldCondition(key, match=one)
        case RangeCondition(key=key, range=range):
            dates = {k: v.isoformat() for k, v in range.bounds.items() if isinstance(v, datetime)}
            numbers: Any = range.bounds
            bounds = edge.RangeDateTime(**dates) if dates else edge.RangeFloat(**numbers)
            return edge.FieldCondition(key, range=bounds)
    raise AssertionError(f"unknown kind of condition: {condition!r}")


def _any(values: list[Value]) -> Any:
    given: Any = values
    if len(given) > 1:
        return edge.MatchAny(given)
    # qdrant_edge reads Python's True as the number 1, but NumPy's as a boolean.
    value: Any = np.bool_(given[0]) if isinstance(given[0], bool) else given[0]
    return edge.MatchValue(value)
