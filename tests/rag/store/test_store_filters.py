"""Both engines filter as Qdrant's documentation says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta, timezone
from operator import ge, gt, le, lt
from typing import Any

import numpy as np
import pytest

from bento.contract.filters import (
    FieldName,
    Filter,
    IsEmptyCondition,
    IsNullCondition,
    RangeCondition,
    all_of,
    any_of,
    is_empty,
    match_any,
    match_except,
    none_of,
    parse_filter,
)
from rag.store.edge.store import EdgeStore
from rag.store.interface import KEYWORD_FIELDS, Collection, Point
from tests.support.rag.engines import CLIP, DIM, point_id, quick_folder
from tests.support.rag.loopback import Loopback

pytestmark = pytest.mark.service  # for qdrant-client, whose import takes a second

Payloads = dict[str, dict[str, Any]]
Collections = dict[str, list[Collection]]


def is_null(key: str) -> IsNullCondition:
    return IsNullCondition(is_null=FieldName(key=key))


def ranged(key: str, **bounds: Any) -> RangeCondition:
    return RangeCondition.model_validate({"key": key, "range": bounds})


NOON = "2026-01-31T12:00:00"
VALUES: Payloads = {
    "missing": {},
    "null": {"a": None},
    "[]": {"a": []},
    "[null]": {"a": [None]},
    "[[]]": {"a": [[]]},
    '""': {"a": ""},
    "{}": {"a": {}},
    "0": {"a": 0},
    "1": {"a": 1},
    "1.0": {"a": 1.0},
    "1.5": {"a": 1.5},
    "true": {"a": True},
    "'1'": {"a": "1"},
    "x": {"a": "x"},
    "[x,y]": {"a": ["x", "y"]},
    "[y]": {"a": ["y"]},
    "[1,x]": {"a": [1, "x"]},
    "{b:x}": {"a": {"b": "x"}},
    "{b:null}": {"a": {"b": None}},
    "{b:[x,y]}": {"a": {"b": ["x", "y"]}},
    "[{b:x},{b:y}]": {"a": [{"b": "x"}, {"b": "y"}]},
    "[{b:[]},{c:1}]": {"a": [{"b": []}, {"c": 1}]},
    "day": {"a": "2026-01-31"},
    "noon": {"a": NOON},
    "noon Z": {"a": f"{NOON}Z"},
    "noon +2": {"a": "2026-01-31T14:00:00+02:00"},
    "noon .5": {"a": f"{NOON}.500000+00:00"},
    "[days]": {"a": ["2025-01-01", "2027-01-01"]},
}
# Payloads with a value that is neither missing, null nor empty.
PRESENT = VALUES.keys() - {"missing", "null", "[]", "[null]"}

NAMED: Payloads = {  # each key has a value in its own payload only
    '"my key"': {"my key": "x"},
    '"a.b"': {"a.b": ["x", "y"]},
    "a.b": {"a": {"b": "x"}},
    '"a"."b c"': {"a": {"b c": "x"}},
    '"a[]"[]': {"a[]": ["x"]},
    'people[]."full name"': {"people": [{"full name": "x"}]},
    '""': {"": "x"},
    '"мій\t/ключ\'😀"': {"мій\t/ключ'😀": "x"},
}


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collections]:
    """Yield collections by name, each as a pair: in the embedded store and on a server."""
    with ExitStack() as stack:
        folder = stack.enter_context(quick_folder(tmp_path_factory.mktemp("edge")))
        loopback = Loopback()
        stack.callback(loopback.stop)
        stores = EdgeStore(folder), loopback.connect()
        held: Collections = {"values": [], "names": [], "random": []}
        for store in stores:
            stack.enter_context(closing(store))
            for name, payloads in (
                ("values", VALUES),
                ("names", NAMED),
                ("random", random_payloads()),
            ):
                collection: Collection = store.open(name, CLIP)
                collection.upsert(
                    [
                        Point(
                            point_id(key),
                            np.eye(DIM, dtype=np.float32)[n % DIM],
                            {**payload, "key": key},
                        )
                        for n, (key, payload) in enumerate(payloads.items())
                    ]
                )
                held[name].append(collection)
        yield held


def scrolled(collection: Collection, wanted: Filter) -> set[str]:
    """Return the keys of the payloads that pass a filter in a scroll."""
    return {record.payload["key"] for record in collection.scroll(filter=wanted)[0]}


def passing(collection: Collection, wanted: Filter) -> set[str]:
    """Return the keys of the payloads that pass a filter in a scroll, a count and a query."""
    keys = scrolled(collection, wanted)
    assert collection.count(filter=wanted) == len(keys)
    best = collection.query(np.ones(DIM, np.float32), 1000, filter=wanted)
    assert {match.payload["key"] for match in best} == keys
    return keys


def noon(**bounds: timedelta) -> RangeCondition:
    start = datetime(2026, 1, 31, 14, tzinfo=timezone(timedelta(hours=2)))
    return ranged("a", **{name: start + later for name, later in bounds.items()})


@pytest.mark.parametrize(
    ("what", "names"),
    [
        (match_any("a", ["x"]), {"x", "[x,y]", "[1,x]"}),
        (match_any("a", ["x", "y"]), {"x", "[x,y]", "[y]", "[1,x]"}),
        (match_any("a", [""]), {'""'}),
        (match_any("a", [1]), {"1", "[1,x]"}),
        (match_any("a", [0, 1]), {"0", "1", "[1,x]"}),
        (match_any("a", [True]), {"true"}),
        (match_any("a", [False]), set()),
        (match_any("a.b", ["x"]), {"{b:x}", "{b:[x,y]}"}),
        (match_any("a[].b", ["y"]), {"[{b:x},{b:y}]"}),
        (match_any("a[]", ["x"]), {"[x,y]", "[1,x]"}),
        (match_except("a", ["x"]), PRESENT - {"x"}),
        (match_except("a", ["x", "y"]), PRESENT - {"x", "[x,y]", "[y]"}),
        (match_except("a", [1]), PRESENT - {"1"}),
        (match_except("a.b", ["x"]), {"{b:[x,y]}"}),
        (ranged("a", gte=1.0), {"1", "1.0", "1.5", "[1,x]"}),
        (ranged("a", gt=0.0, lt=1.5), {"1", "1.0", "[1,x]"}),
        (noon(gte=timedelta(), lte=timedelta()), {"noon", "noon Z", "noon +2"}),
        (noon(gt=timedelta()), {"noon .5", "[days]"}),
        (noon(lt=timedelta()), {"day", "[days]"}),
        (noon(gte=timedelta(seconds=0.5), lt=timedelta(days=1)), {"noon .5"}),
        (is_empty("a"), {"missing", "null", "[]"}),
        (is_empty("a.b"), VALUES.keys() - {"{b:x}", "{b:[x,y]}"}),
        (is_empty("a[].b"), VALUES.keys() - {"[{b:x},{b:y}]"}),
        (is_null("a"), {"null", "[null]"}),
        (is_null("a.b"), {"{b:null}"}),
        (Filter(), set(VALUES)),
        (none_of(Filter()), set()),
        (any_of(Filter()), set(VALUES)),
        (
            Filter(
                must=[ranged("a", gt=0.0)],
                should=[match_any("a", [1]), match_any("a", ["y"])],
                must_not=[match_any("a", ["x"])],
            ),
            {"1"},
        ),
        (
            any_of(
                all_of(match_any("a", ["x"]), match_any("a", ["y"])),
                none_of(match_except("a", ["z"])),
            ),
            {"[x,y]", "missing", "null", "[]", "[null]"},
        ),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_filters_pass_what_qdrant_documents(
    collections: Collections, what: Any, names: set[str]
) -> None:
    wanted = what if isinstance(what, Filter) else all_of(what)
    for collection in collections["values"]:
        assert passing(collection, wanted) == names
    for key, payload in VALUES.items():
        assert passes(payload, wanted) == (key in names), key


@pytest.mark.parametrize("key", NAMED)
def test_a_name_in_quotes_may_have_any_characters(collections: Collections, key: str) -> None:
    for collection in collections["names"]:
        for kind in ({"match": {"value": "x"}}, {"match": {"except": ["z"]}}):
            assert passing(collection, parse_filter({"must": [{"key": key, **kind}]})) == {key}
        empty = parse_filter({"must": [{"is_empty": {"key": key}}]})
        assert passing(collection, empty) == NAMED.keys() - {key}


WORDS = ("red", "green", "blue", "кіт", "")
MOMENTS = ("2026-01-31", NOON, f"{NOON}Z", f"{NOON}.25Z", "2026-02-01T01:00:00+02:00", "soon")
KEYS = (
    *KEYWORD_FIELDS,
    *("n", "n[]", "at", "mixed", "camera", "camera.lens", "camera.iso", "camera.lens.x"),
    *("people", "people[]", "people[].name", "people[].age", "people[].tags[]", "people.name"),
    *("tags[]", "nowhere", "nowhere[].x"),
)


def random_payloads() -> Payloads:
    rng = random.Random(1)
    return {str(n): random_payload(rng) for n in range(80)}


def random_payload(rng: random.Random) -> dict[str, Any]:
    def some(make: Any) -> Any:
        kind = rng.random()
        if kind < 0.5:
            return make()
        if kind < 0.8:
            return [make() for _ in range(rng.randrange(3))]
        return None

    def word() -> str:
        return rng.choice(WORDS)

    def number() -> int | float:
        return rng.choice((-1, 0, 1, 2, 0.5, 1.0, 2**53))

    def mixed() -> Any:
        return rng.choice((True, False, 0, 1, "red", "1", None, {}, [], [1], ["red"]))

    def person() -> dict[str, Any]:
        made = {"name": some(word), "age": some(number), "tags": some(word)}
        return {key: value for key, value in made.items() if rng.random() < 0.7}

    payload = {
        **{field: some(word) for field in KEYWORD_FIELDS},  # strings only: see MatchCondition
        "n": some(number),
        "at": some(lambda: rng.choice(MOMENTS)),
        "mixed": some(mixed),
        "camera": some(lambda: {"lens": some(word), "iso": some(number)}),
        "people": some(person),
    }
    return {key: value for key, value in payload.items() if rng.random() < 0.8}


def random_filter(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for clause in ("must", "should", "must_not"):
        if rng.random() < 0.5:
            made[clause] = [
                random_filter(rng, depth + 1) or {"must": []}
                if depth < 2 and rng.random() < 0.2
                else random_condition(rng)
                for _ in range(rng.choice((0, 1, 1, 1, 2)))
            ]
    return made


def random_condition(rng: random.Random) -> dict[str, Any]:
    key = rng.choice(KEYS)
    kind = rng.choice(("value", "any", "except", "numbers", "dates", "is_empty", "is_null"))
    if kind in ("is_empty", "is_null"):
        return {kind: {"key": key}}
    if kind in ("numbers", "dates"):
        bounds: tuple[Any, ...] = (-1, 0, 0.5, 1, 2) if kind == "numbers" else MOMENTS[:-1]
        names = rng.sample(("gt", "gte", "lt", "lte"), rng.choice((1, 1, 2)))
        return {"key": key, "range": {name: rng.choice(bounds) for name in names}}
    if kind == "value":
        return {"key": key, "match": {"value": rng.choice((*WORDS, 0, 1, 2, True, False))}}
    values: tuple[Any, ...] = rng.choice((WORDS, (0, 1, 2)))
    return {"key": key, "match": {kind: rng.sample(values, rng.choice((1, 2)))}}


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))]
)
def test_both_engines_pass_the_same_points_through_random_filters(
    collections: Collections, seed: int
) -> None:
    rng = random.Random(seed)
    payloads = random_payloads()
    edge, server = collections["random"]
    sizes = set()
    for _ in range(60):
        data = random_filter(rng)
        wanted = parse_filter(data)
        expected = {key for key, payload in payloads.items() if passes(payload, wanted)}
        sizes.add(len(expected))
        assert passing(edge, wanted) == expected, data
        assert scrolled(server, wanted) == expected, data
    assert len(sizes) > 12, "most filters pass everything or nothing"


def passes(payload: dict[str, Any], what: Any) -> bool:
    """Evaluate a filter or a condition in plain Python, as Qdrant documents it."""
    if isinstance(what, Filter):
        return (
            all(passes(payload, one) for one in what.must)
            and (not what.should or any(passes(payload, one) for one in what.should))
            and not any(passes(payload, one) for one in what.must_not)
        )
    if isinstance(what, IsEmptyCondition):
        found = values_at(payload, what.is_empty.key)
        return all(value is None or value == [] for value in found)
    if isinstance(what, IsNullCondition):
        found = values_at(payload, what.is_null.key)
        return any(None in (value if isinstance(value, list) else [value]) for value in found)
    found = values_at(payload, what.key)
    items = [item for value in found for item in (value if isinstance(value, list) else [value])]
    if isinstance(what, RangeCondition):
        return any(within(item, what.range.bounds) for item in items)
    wanted = what.match.values
    if not what.match.excludes:
        return any(same(item, value) for item in items for value in wanted)
    return any(
        item is not None and not any(same(item, value) for value in wanted) for item in items
    )


def values_at(value: Any, key: str) -> list[Any]:
    """Return the values at a key; [] after a name stands for each item of its list."""
    name, _, rest = key.partition(".")
    if not isinstance(value, dict) or name.removesuffix("[]") not in value:
        return []
    found = [value[name.removesuffix("[]")]]
    if name.endswith("[]"):
        found = found[0] if isinstance(found[0], list) else []
    return [deep for item in found for deep in values_at(item, rest)] if rest else found


def same(item: Any, value: Any) -> bool:
    return type(item) is type(value) and bool(item == value)


def within(item: Any, bounds: Any) -> bool:
    if isinstance(next(iter(bounds.values())), datetime):
        try:
            item = datetime.fromisoformat(item)
        except (TypeError, ValueError):
            return False
        item = item if item.tzinfo else item.replace(tzinfo=UTC)
    elif isinstance(item, bool) or not isinstance(item, int | float):
        return False
    compare = {"gt": gt, "gte": ge, "lt": lt, "lte": le}
    return all(compare[name](item, bound) for name, bound in bounds.items())
