"""Filters as a Qdrant server takes them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from qdrant_client import models

from bento.contract.filters import Condition, Filter, IsEmpty, IsNull, MatchAny, MatchExcept


def server_filter(filter: Filter | None) -> models.Filter | None:
    """Return a filter as `qdrant_client` takes it."""
    if filter is None:
        return None
    return models.Filter(
        must=_all(filter.must), should=_all(filter.should), must_not=_all(filter.must_not)
    )


def _all(conditions: tuple[Condition | Filter, ...]) -> list[Any] | None:
    return [_condition(condition) for condition in conditions] or None


def _condition(condition: Condition | Filter) -> Any:
    if isinstance(condition, Filter):
        return server_filter(condition)
    if isinstance(condition, IsEmpty):
        return models.IsEmptyCondition(is_empty=models.PayloadField(key=condition.key))
    if isinstance(condition, IsNull):
        return models.IsNullCondition(is_null=models.PayloadField(key=condition.key))
    if isinstance(condition, MatchAny):
        values: Any = list(condition.values)
        one = (
            models.MatchValue(value=values[0]) if len(values) == 1 else models.MatchAny(any=values)
        )
        return models.FieldCondition(key=condition.key, match=one)
    if isinstance(condition, MatchExcept):
        values = {"except": list(condition.values)}
        return models.FieldCondition(key=condition.key, match=models.MatchExcept(**values))
    bounds: Any = dict(condition.bounds)
    dates = any(isinstance(bound, datetime) for bound in bounds.values())
    range = models.DatetimeRange(**bounds) if dates else models.Range(**bounds)
    return models.FieldCondition(key=condition.key, range=range)
