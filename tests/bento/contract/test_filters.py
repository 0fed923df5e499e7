"""Filters: what is allowed, what the errors say, and how filters are combined."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from bento.contract.errors import describe
from bento.contract.filters import (
    FieldName,
    Filter,
    IsNullCondition,
    Match,
    MatchCondition,
    RangeCondition,
    any_of,
    both,
    is_empty,
    match_any,
    match_except,
    parse_filter,
    tenant,
)
from bento.contract.limits import MAX_CONDITIONS, MAX_NESTING, MAX_VALUES
from bento.contract.search import SearchRequest


def ranged(key: str, **bounds: Any) -> RangeCondition:
    return RangeCondition.model_validate({"key": key, "range": bounds})


def test_every_kind_of_condition_is_parsed() -> None:
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
        must_not=[IsNullCondition(is_null=FieldName(key="n")), any_of()],
    )
    assert parse_filter({}) == Filter()


def test_dates_are_converted_to_utc_with_microseconds() -> None:
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
    return f"must.0.key: {shown} is not a valid key: give the name of a payload field"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (7, "give an object with must, should, must_not"),
        ({"min_should": []}, '"min_should" is not allowed here: give must, should, must_not'),
        ({"must": [7]}, f"must.0: {NO_CONDITION}"),
        ({"must": [{}]}, f"must.0: {NO_CONDITION}"),
        ({"must": [{"has_id": ["x"]}]}, f"must.0: {NO_CONDITION}"),
        ({"must": {"key": "a"}}, f"must.0: {NO_CONDITION}"),
        ({"should": [{"must_not": [{"match": {}}]}]}, "should.0.must_not.0.key: is required"),
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
        (condition(match={"any": ["a", 1]}), "match.any: give only strings or only integers"),
        (condition(match={"except": [True]}), "except: give only strings or only integers"),
        (condition(match={"except": [1, False]}), "except: give only strings or only integers"),
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
def test_errors_name_the_field_and_what_is_allowed(data: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_filter(data)
    assert said in describe(caught.value)
    assert len(describe(caught.value).encode()) < 300


def test_the_largest_filters_are_allowed() -> None:
    parse_filter(nested(MAX_NESTING))
    parse_filter({"must": [{"is_null": {"key": "a"}}] * MAX_CONDITIONS})
    parse_filter(condition(match={"any": ["a"] * MAX_VALUES}))


def test_both_combines_two_filters() -> None:
    ours, theirs = tenant("ours"), tenant("theirs")
    assert both(None, None) is None
    assert both(ours, None) == both(None, ours) == ours
    assert both(ours, theirs) == Filter(must=[ours, theirs])


@pytest.mark.parametrize(
    "match", [{"value": True}, {"any": ["a", "b"]}, {"except": [1]}], ids=lambda match: str(match)
)
def test_a_request_with_a_filter_survives_dumping_and_parsing(match: dict[str, Any]) -> None:
    given = {"must": [{"key": "a", "match": match}, {"key": "n", "range": {"gt": 1}}]}
    request = SearchRequest.model_validate({"text": "a", "filter": given})
    assert SearchRequest.model_validate(request.model_dump()) == request
    assert SearchRequest.model_validate_json(request.model_dump_json()) == request
