"""Filters: what is allowed, and that all engines let through what Qdrant's documentation says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta, timezone
from operator import ge, gt, le, lt
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from qdrant_client import QdrantClient

from bento.contract.errors import describe
from bento.contract.filters import (
    FieldName,
    Filter,
    IsEmptyCondition,
    IsNullCondition,
    Match,
    MatchCondition,
    RangeCondition,
    all_of,
    any_of,
    both,
    is_empty,
    match_any,
    match_except,
    none_of,
    parse_filter,
    tenant,
)
from bento.contract.limits import MAX_CONDITIONS, MAX_NESTING, MAX_VALUES
from bento.contract.search import SearchRequest
from rag.store.edge.store import EdgeStore
from rag.store.interface import KEYWORD_FIELDS, Collection, Point
from rag.store.server.store import ServerStore
from tests.support.rag.engines import CLIP, DIM, point_id, quick_folder
from tests.support.rag.loopback import Loopback


def is_null(key: str) -> IsNullCondition:
    return IsNullCondition(is_null=FieldName(key=key))


def ranged(key: str, **bounds: Any) -> RangeCondition:
    return RangeCondition.model_validate({"key": key, "range": bounds})


# What is allowed ---------------------------------------------------------------------------


def test_every_kind_of_condition_is_read() -> None:
    parsed = parse_filter(
        {
            "must": [
                {"key": "category", "match": {"value": "cat"}},
                {"key": "tags", "match": {"any": ["a", "b"]}},
                {"key": "camera.lens", "match": {"except": [1, 2]}},
                {"key": "n", "range": {"gt": 1, "lte": 2.5}},
                {"key": "at", "range": {"gte": "2026-01-31", "lt": "2026-01-31T12:00:00+02:00"}},
            ],
            "should": {"is_empty": {"key": "people[].name"}},
            "must_not": [{"is_null": {"key": "n"}}, {"should": []}],
        }
    )
    day = datetime(2026, 1, 31, tzinfo=UTC)
    assert parsed == Filter(
        must=[
            MatchCondition(key="category", match=Match(value="cat")),
            match_any("tags", ["a", "b"]),
            match_except("camera.lens", [1, 2]),
            ranged("n", gt=1.0, lte=2.5),
            ranged("at", gte=day, lt=day + timedelta(hours=10)),
        ],
        should=[is_empty("people[].name")],
        must_not=[is_null("n"), any_of()],
    )
    assert parse_filter({}) == Filter()


def test_dates_are_in_utc_to_the_microsecond() -> None:
    given = "2026-01-31T12:00:00.000001+05:30:15"
    parsed = parse_filter({"must": {"key": "at", "range": {"gt": given}}})
    assert parsed.must == [ranged("at", gt=datetime(2026, 1, 31, 6, 29, 45, 1, tzinfo=UTC))]


def condition(**kind: Any) -> dict[str, Any]:
    return {"must": [{"key": "a", **kind}]}


def nested(levels: int) -> dict[str, Any]:
    data: dict[str, Any] = {"is_null": {"key": "a"}}
    for _ in range(levels):
        data = {"must": [data]}
    return data


NO_CONDITION = (
    "give an object with must, should or must_not, or with exactly one of match, range, is_empty "
    "and is_null"
)


def no_key(shown: str) -> str:
    return f"must.0.key: {shown} is no key: give the name of a payload field"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (7, "give an object with must, should, must_not"),
        ({"min_should": []}, '"min_should" is not allowed here: give must, should, must_not'),
        ({"must": [7]}, f"must.0: {NO_CONDITION}"),
        ({"must": [{}]}, f"must.0: {NO_CONDITION}"),
        ({"must": [{"has_id": ["x"]}]}, f"must.0: {NO_CONDITION}"),
        ({"must": {"key": "a"}}, f"must.0: {NO_CONDITION}"),
        ({"should": [{"must_not": [{"match": {}}]}]}, "should.0.must_not.0.key: Field required"),
        (condition(match={"value": 1}, range={"gt": 1}), f"must.0: {NO_CONDITION}"),
        (
            condition(match={"text": "a"}),
            '0.match: "text" is not allowed here: give value, any, except',
        ),
        (condition(match={}), "must.0.match: give exactly one of value, any and except"),
        (condition(match={"value": 1.5}), "must.0.match.value: 1.5 is not allowed: give a string"),
        (condition(match={"value": None}), "match.value: null is not allowed"),
        (condition(match={"value": 2**63}), "match.value: 9223372036854775808 is not allowed"),
        (condition(match={"value": "\ud800"}), 'match.value: "?" is not allowed'),
        (condition(match={"any": "a"}), f"match.any: give a list of 1 to {MAX_VALUES} values"),
        (condition(match={"any": []}), "match.any: give a list"),
        (condition(match={"any": ["a"] * 1001}), "match.any: give a list"),
        (condition(match={"any": ["a", 1]}), "match.any: give strings only or whole numbers only"),
        (condition(match={"except": [True]}), "except: give strings only or whole numbers only"),
        (condition(match={"except": [1, False]}), "except: give strings only or whole numbers"),
        (condition(range={}), "must.0.range: give some of gt, gte, lt and lte"),
        (condition(range={"gt": 1, "lt": "2026-01-31"}), "all numbers or all dates"),
        (condition(range={"gt": True}), "range.gt: true is not allowed: give a number, or a date"),
        (condition(range={"gt": 10**400}), f"range.gt: {10**79} is not allowed"),
        (condition(range={"gt": float("inf")}), "range.gt: Infinity is not allowed"),
        (condition(range={"gt": "soon"}), 'range.gt: "soon" is not allowed'),
        (condition(range={"gt": "0001-01-01T00:00:00+05:00"}), 'range.gt: "0001-01-01'),
        (condition(range={"gt": [1]}), "range.gt: [1] is not allowed"),
        (
            condition(range={"after": 1}),
            'range: "after" is not allowed here: give gt, gte, lt, lte',
        ),
        ({"must": [{"key": "", "match": {"value": 1}}]}, no_key('""')),
        ({"must": [{"key": "a b", "match": {"value": 1}}]}, no_key('"a b"')),
        ({"must": [{"key": '"a b', "match": {"value": 1}}]}, no_key('"\\"a b"')),
        ({"must": [{"key": 'a"b"', "match": {"value": 1}}]}, no_key('"a\\"b\\""')),
        ({"must": [{"key": '"a\\b"', "match": {"value": 1}}]}, no_key('"\\"a\\\\b\\""')),
        ({"must": [{"key": '"\ud800"', "match": {"value": 1}}]}, no_key('"\\"?\\""')),
        ({"must": [{"key": "a[0]", "match": {"value": 1}}]}, no_key('"a[0]"')),
        ({"must": [{"key": "a.", "match": {"value": 1}}]}, no_key('"a."')),
        ({"must": [{"key": ["a"], "match": {"value": 1}}]}, no_key('["a"]')),
        ({"must": [{"is_empty": "a"}]}, "must.0.is_empty: give an object with key"),
        (
            {"must": [{"is_null": {"key": "a"}, "key": "a"}]},
            '0: "key" is not allowed here: give is_null',
        ),
        (nested(MAX_NESTING + 1), f"nested deeper than {MAX_NESTING} levels"),
        ({"must": [{"is_null": {"key": "a"}}] * 101}, f"more than {MAX_CONDITIONS} conditions"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_what_is_allowed(data: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_filter(data)
    assert said in describe(caught.value)
    assert len(describe(caught.value).encode()) < 300


def test_the_largest_filters_are_allowed() -> None:
    parse_filter(nested(MAX_NESTING))
    parse_filter({"must": [{"is_null": {"key": "a"}}] * MAX_CONDITIONS})
    parse_filter(condition(match={"any": ["a"] * MAX_VALUES}))


def test_both_of_two_filters() -> None:
    ours, theirs = tenant("ours"), tenant("theirs")
    assert both(None, None) is None
    assert both(ours, None) == both(None, ours) == ours
    assert both(ours, theirs) == Filter(must=[ours, theirs])


# What passes -------------------------------------------------------------------------------

NOON = "2026-01-31T12:00:00"
VALUES: dict[str, dict[str, Any]] = {
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
DATES = {"day", "noon", "noon Z", "noon +2", "noon .5", "[days]"}
# Neither missing nor null, and not empty.
PRESENT = VALUES.keys() - {"missing", "null", "[]", "[null]"}


NAMED: dict[str, dict[str, Any]] = {  # by a key that only this payload has something at
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
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Collection]]:
    """The points of `VALUES` and of `random_payload`, in each engine."""
    with ExitStack() as stack:
        folder = stack.enter_context(quick_folder(tmp_path_factory.mktemp("edge")))
        loopback = Loopback()
        stack.callback(loopback.stop)
        stores = EdgeStore(folder), ServerStore(QdrantClient(":memory:")), loopback.connect()
        held = []
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
                        Point(point_id(key), np.eye(DIM)[n % DIM], {**payload, "key": key})
                        for n, (key, payload) in enumerate(payloads.items())
                    ]
                )
                held.append(collection)
        yield held


def passing(collection: Collection, wanted: Filter) -> set[str]:
    found = {record.payload["key"] for record in collection.scroll(filter=wanted)[0]}
    assert collection.count(filter=wanted) == len(found)
    best = collection.query(np.ones(DIM), 1000, filter=wanted)
    assert {match.payload["key"] for match in best} == found
    return found


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
def test_what_passes_is_what_qdrant_says(
    engines: list[Collection], what: Any, names: set[str]
) -> None:
    wanted = what if isinstance(what, Filter) else all_of(what)
    for collection in engines:
        if collection.name == "values":
            assert passing(collection, wanted) == names
    for key, payload in VALUES.items():
        assert passes(payload, wanted) == (key in names), key


@pytest.mark.parametrize("key", NAMED)
def test_a_name_in_quotes_may_have_any_characters(engines: list[Collection], key: str) -> None:
    for collection in engines:
        if collection.name == "names":
            for kind in ({"match": {"value": "x"}}, {"match": {"except": ["z"]}}):
                assert passing(collection, parse_filter({"must": [{"key": key, **kind}]})) == {key}
            empty = parse_filter({"must": [{"is_empty": {"key": key}}]})
            assert passing(collection, empty) == NAMED.keys() - {key}


# Against each other and a plain evaluation ---------------------------------------------------

WORDS = ("red", "green", "blue", "кіт", "")
MOMENTS = ("2026-01-31", NOON, f"{NOON}Z", f"{NOON}.25Z", "2026-02-01T01:00:00+02:00", "soon")
KEYS = (
    *KEYWORD_FIELDS,
    *("n", "n[]", "at", "mixed", "camera", "camera.lens", "camera.iso", "camera.lens.x"),
    *("people", "people[]", "people[].name", "people[].age", "people[].tags[]", "people.name"),
    *("tags[]", "nowhere", "nowhere[].x"),
)


def random_payloads() -> dict[str, dict[str, Any]]:
    rng = random.Random(1)
    return {str(n): random_payload(rng) for n in range(150)}


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
        **{field: some(word) for field in KEYWORD_FIELDS},  # as they are meant: see MatchCondition
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


@pytest.mark.parametrize("seed", range(6))
def test_random_filters_let_the_same_points_through_everywhere(
    engines: list[Collection], seed: int
) -> None:
    rng = random.Random(seed)
    payloads = random_payloads()
    sizes = set()
    for _ in range(60):
        data = random_filter(rng)
        wanted = parse_filter(data)
        expected = {key for key, payload in payloads.items() if passes(payload, wanted)}
        sizes.add(len(expected))
        for collection in engines:
            if collection.name == "random":
                assert passing(collection, wanted) == expected, (type(collection), data)
    assert len(sizes) > 12  # and not only everything and nothing


def passes(payload: dict[str, Any], what: Any) -> bool:
    """Evaluate a filter or a condition as Qdrant's documentation says, naively."""
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
    """Return what lies at a key; with [] each item of the list there."""
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


# As part of a request -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "match", [{"value": True}, {"any": ["a", "b"]}, {"except": [1]}], ids=lambda match: str(match)
)
def test_a_request_with_a_filter_can_be_dumped_and_read_again(match: dict[str, Any]) -> None:
    given = {"must": [{"key": "a", "match": match}, {"key": "n", "range": {"gt": 1}}]}
    request = SearchRequest.model_validate({"text": "a", "filter": given})
    assert SearchRequest.model_validate(request.model_dump()) == request
    assert SearchRequest.model_validate_json(request.model_dump_json()) == request
