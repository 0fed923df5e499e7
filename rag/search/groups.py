"""Groups: find the best pictures for each value of a payload field, for both engines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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
from rag.search.limits import DEFAULT_LIMITS, Limits
from rag.store.interface import Collection, Match, Payload, Vector

Groups = dict[Value, list[Match]]  # the matches of each value of the field, best first


@dataclass(frozen=True)
class Look:
    """One query to one collection; each call returns a part of its matches."""

    held: Collection
    query: Vector
    wanted: Filter | None
    threshold: float | None
    limits: Limits = DEFAULT_LIMITS

    def __call__(
        self,
        limit: int,
        offset: int = 0,
        *,
        besides: Filter | None = None,
        with_vectors: bool = False,
        fields: Sequence[str] | None = None,
    ) -> list[Match]:
        return self.held.query(
            self.query,
            limit,
            offset=offset,
            filter=both(self.wanted, besides),
            score_threshold=self.threshold,
            with_vectors=with_vectors,
            fields=fields,
        )


def group(look: Look, field: str, count: int) -> tuple[Groups, bool]:
    """Return the groups of the first `count` values, and whether all matches were seen.

    A picture whose field is a list belongs to the group of each item; without the field, to no
    group. The matches have no other fields. Beyond the `depth` best matches, this looks only at
    pictures with a value that it has not found yet.
    """
    limits = look.limits
    groups: Groups = {}
    seen: set[str] = set()  # a write between two queries may return a picture again
    known: set[Value] = set()
    besides, start = None, 0
    for _ in range(limits.depth // limits.chunk + limits.further):
        matches = look(limits.chunk, start, besides=besides, fields=[field])
        for match in matches:
            for value in _values(match.payload, field) if match.id not in seen else ():
                if value not in known and (value in groups or len(groups) < count):
                    groups.setdefault(value, []).append(match)
        seen.update(match.id for match in matches)
        if len(matches) < limits.chunk:
            return groups, besides is None
        if len(groups) == count:
            break
        start += limits.chunk
        if start == limits.depth or (besides is not None and len(groups) > len(known)):
            known, start = set(groups), 0
            besides = _others(field, known)
    return groups, False


def fill(look: Look, field: str, groups: Groups, size: int) -> None:
    """Give each group its `size` best matches, with one query for many groups.

    A group can stay short after `further` queries, if very many pictures of other groups score
    higher.
    """
    limits = look.limits
    lacking = [value for value, matches in groups.items() if len(matches) < size]
    for _ in range(limits.further):
        if not lacking:
            break
        most = limits.depth // size
        asked, lacking = lacking[:most], lacking[most:]
        limit = max(limits.chunk, size * len(asked))  # enough to complete at least one group
        matches = look(limit, besides=any_of(*_any(field, asked)), fields=[field])
        found: Groups = {value: [] for value in asked}
        for match in matches:
            for value in _values(match.payload, field):
                if value in found:
                    found[value].append(match)
        groups.update({value: max(groups[value], found[value], key=len) for value in asked})
        if len(matches) == limit:
            lacking += [value for value in asked if len(groups[value]) < size]


def _others(field: str, values: Iterable[Value]) -> Filter:
    """Return a filter for pictures whose field has a value other than these."""
    return Filter.model_construct(
        must=[match_except(field, kind) for kind in _kinds(values)], must_not=[is_empty(field)]
    )


def _any(field: str, values: Iterable[Value]) -> list[MatchCondition]:
    return [match_any(field, kind) for kind in _kinds(values)]


def _kinds(values: Iterable[Value]) -> list[tuple[Value, ...]]:
    """Separate strings from integers, since a condition takes only one kind of value."""
    listed = list(values)
    kinds = [tuple(value for value in listed if isinstance(value, kind)) for kind in (str, int)]
    return [kind for kind in kinds if kind]


def _values(payload: Payload, field: str) -> list[Value]:
    """Return the distinct strings and integers of a field; `a.b` names a field of an object."""
    value: Any = payload
    for name in names_of(field):
        value = value.get(name) if isinstance(value, dict) else None
    items = value if isinstance(value, list) else [value]
    return list(
        dict.fromkeys(
            x for x in items if isinstance(x, str | int) and x is not True and x is not False
        )
    )
