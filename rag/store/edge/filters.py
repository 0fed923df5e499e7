"""Filters as the embedded engine takes them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import qdrant_edge as edge

from bento.contract.filters import Condition, Filter, IsEmpty, IsNull, MatchAny, MatchExcept, Value


def edge_filter(filter: Filter | None) -> Any:
    """Return a filter as `qdrant_edge` takes it."""
    if filter is None:
        return None
    return edge.Filter(
        must=_all(filter.must), should=_all(filter.should), must_not=_all(filter.must_not)
    )


def _all(conditions: tuple[Condition | Filter, ...]) -> list[Any] | None:
    return [_condition(condition) for condition in conditions] or None


def _condition(condition: Condition | Filter) -> Any:
    if isinstance(condition, Filter):
        return edge_filter(condition)
    if isinstance(condition, IsEmpty):
        return edge.IsEmptyCondition(condition.key)
    if isinstance(condition, IsNull):
        return edge.IsNullCondition(condition.key)
    if isinstance(condition, MatchAny):
        return edge.FieldCondition(condition.key, match=_any(condition.values))
    if isinstance(condition, MatchExcept):
        return edge.FieldCondition(condition.key, match=_except(condition.values))
    dates = {k: v.isoformat() for k, v in condition.bounds.items() if isinstance(v, datetime)}
    numbers = {k: v for k, v in condition.bounds.items() if not isinstance(v, datetime)}
    range = edge.RangeDateTime(**dates) if dates else edge.RangeFloat(**numbers)
    return edge.FieldCondition(condition.key, range=range)


def _any(values: tuple[Value, ...]) -> Any:
    given: Any = list(values)
    if len(given) > 1:
        return edge.MatchAny(given)
    # The binding takes Python's True for the number 1; NumPy's is no number.
    value: Any = np.bool_(given[0]) if isinstance(given[0], bool) else given[0]
    return edge.MatchValue(value)


def _except(values: tuple[Value, ...]) -> Any:
    given: Any = list(values)
    return edge.MatchExcept(given)
