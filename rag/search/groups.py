"""Groups: the best pictures of each value of a payload field, the same for both engines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from bento.contract.filters import (
    Filter,
    MatchCondition,
    Value,
    any_of,
    both,
    is_empty,
    match_any,
    match_except,
    names_of,
)
from bento.contract.limits import MAX_DEPTH
from rag.store.interface import Collection, Match, Payload, Vector

_CHUNK: Final = 1000  # matches looked through at a time
_FURTHER: Final = 20  # looks for groups below the `MAX_DEPTH` best, and as many to fill groups

Groups = dict[Value, list[Match]]  # by the value of a payload field, each best first


@dataclass(frozen=True)
class Look:
    """One query to one collection, asked in pieces."""

    held: Collection
    query: Vector
    wanted: Filter | None
    threshold: float | None

    def __call__(
        self,
        limit: int,
        offset: int = 0,
        *,
        besides: Filter | None = None,
        with_vectors: bool = False,
    ) -> list[Match]:
        return self.held.query(
            self.query,
            limit,
            offset=offset,
            filter=both(self.wanted, besides),
            score_threshold=self.threshold,
            with_vectors=with_vectors,
        )


def group(look: Look, field: str, count: int) -> tuple[Groups, bool]:
    """Return the first `count` values of a payload field, and whether all matches were seen.

    A picture whose field is a list belongs to the group of each item, one without it to none.
    Below the `MAX_DEPTH` best only pictures with a value that was not found yet are looked at.
    """
    groups: Groups = {}
    seen: set[str] = set()  # a write between two looks may bring a picture again
    known: set[Value] = set()
    besides, start = None, 0
    for _ in range(MAX_DEPTH // _CHUNK + _FURTHER):
        matches = look(_CHUNK, start, besides=besides)
        for match in matches:
            for value in _values(match.payload, field) if match.id not in seen else ():
                if value not in known and (value in groups or len(groups) < count):
                    groups.setdefault(value, []).append(match)
        seen.update(match.id for match in matches)
        if len(matches) < _CHUNK:
            return groups, besides is None
        if len(groups) == count:
            break
        start += _CHUNK
        if start == MAX_DEPTH or (besides is not None and len(groups) > len(known)):
            known, start = set(groups), 0
            besides = _others(field, known)
    return groups, False


def fill(look: Look, field: str, groups: Groups, size: int) -> None:
    """Give each group its `size` best matches, looking for those of many groups at a time.

    Some may stay short after `_FURTHER` looks, where very many pictures of others are better.
    """
    lacking = [value for value, matches in groups.items() if len(matches) < size]
    for _ in range(_FURTHER):
        if not lacking:
            break
        asked, lacking = lacking[: MAX_DEPTH // size], lacking[MAX_DEPTH // size :]
        limit = max(_CHUNK, size * len(asked))  # so that at least one of them becomes full
        matches = look(limit, besides=any_of(*_any(field, asked)))
        found: Groups = {value: [] for value in asked}
        for match in matches:
            for value in _values(match.payload, field):
                if value in found:
                    found[value].append(match)
        groups.update({value: max(groups[value], found[value], key=len) for value in asked})
        if len(matches) == limit:
            lacking += [value for value in asked if len(groups[value]) < size]


def _others(field: str, values: Iterable[Value]) -> Filter:
    """Return a filter that lets pictures through whose field has another value than these."""
    return Filter.model_construct(
        must=[match_except(field, kind) for kind in _kinds(values)], must_not=[is_empty(field)]
    )


def _any(field: str, values: Iterable[Value]) -> list[MatchCondition]:
    return [match_any(field, kind) for kind in _kinds(values)]


def _kinds(values: Iterable[Value]) -> list[tuple[Value, ...]]:
    """Return the strings among values and the numbers: a condition takes one kind."""
    listed = list(values)
    kinds = [tuple(value for value in listed if isinstance(value, kind)) for kind in (str, int)]
    return [kind for kind in kinds if kind]


def _values(payload: Payload, field: str) -> list[Value]:
    """Return the distinct values of a field that can name a group, `a.b` within objects."""
    value: Any = payload
    for name in names_of(field):
        value = value.get(name) if isinstance(value, dict) else None
    items = value if isinstance(value, list) else [value]
    return list(
        dict.fromkeys(
            x for x in items if isinstance(x, str | int) and x is not True and x is not False
        )
    )
