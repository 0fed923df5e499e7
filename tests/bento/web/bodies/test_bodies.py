"""JSON bodies are bounded before they are parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento.contract.errors import TooLarge
from bento.contract.limits import (
    MAX_CONDITIONS,
    MAX_EXAMPLES,
    MAX_FILTER_VALUES,
    MAX_PLACES,
    MAX_SEARCHES,
    MAX_TEXT,
    MAX_VALUES,
)
from bento.contract.search import SearchRequest
from bento.web.bodies import Body, _Exact, body_of

ITEMS = 1000

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab,[{"\\', max_size=8),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('a,{"\\', max_size=3), inner),
    max_leaves=40,
)


def accepts(body: bytes, most: int, pieces: int = 1) -> bool:
    checked = Body(most)
    size = max(1, -(-len(body) // pieces))
    try:
        for start in range(0, len(body), size):
            checked.add(body[start : start + size])
    except TooLarge:
        return False
    return True


def values(parsed: Any) -> int:
    """Return how many values a parsed JSON text has, without keys."""
    inner = parsed.values() if isinstance(parsed, dict) else parsed
    return 1 + (sum(map(values, inner)) if isinstance(parsed, list | dict) else 0)


@given(JSON, st.integers(1, 5), st.booleans())
def test_no_body_with_fewer_values_is_rejected(parsed: Any, pieces: int, ascii: bool) -> None:
    body = json.dumps(parsed, ensure_ascii=ascii).encode()
    assert accepts(body, 2 * values(parsed), pieces)


@pytest.mark.parametrize(
    "body",
    [
        b'{"texts":[' + b"1," * 1000 + b"1]}",
        b'{"texts":[' + b'"a",' * 1000 + b'"a"]}',
        b'{"texts":[' + b'"\\\\",' * 1000 + b'"a"]}',
        b'{"texts":[' + b'"\\",",' * 1000 + b'"a"]}',
        b"[" * 1000,
        b'{"a":' * 1000,
        b'{"texts":["' + b',"a' * 1000,
    ],
    ids=["numbers", "strings", "backslashes", "quotes", "lists", "objects", "open"],
)
def test_a_body_with_too_many_values_is_rejected(body: bytes) -> None:
    assert not accepts(body, 100)


def test_a_string_that_never_ends_is_checked_in_linear_time() -> None:
    assert accepts(b'{"texts":["' + b',\\"' * 1_000_000, 100)  # the parser rejects it


def test_the_error_names_the_limit() -> None:
    with pytest.raises(TooLarge, match="more than 1,000 values, the limit of this route"):
        Body(1000).add(b"[" * 1001)


@given(JSON, st.integers(1, 40))
def test_pieces_are_counted_like_the_whole_body(parsed: Any, size: int) -> None:
    body = json.dumps(parsed).encode()
    whole, pieces = _Exact(), _Exact()
    whole.add(body)
    for start in range(0, len(body), size):
        pieces.add(body[start : start + size])
    assert pieces.marks == whole.marks <= 2 * values(parsed)
    assert whole.marks >= (values(parsed) - 1) // 2


def test_a_body_is_rejected_before_it_is_complete() -> None:
    body = Body(100)
    body.add(b'{"texts":["' + b"," * 1000)
    body.add(b'",' + b"1," * 50)
    with pytest.raises(TooLarge):
        body.add(b"1," * 60)


def search(**more: Any) -> dict[str, Any]:
    return {"text": [","] * MAX_EXAMPLES, "weights": [1] * MAX_EXAMPLES, **more}


LISTS = [{"key": "a", "match": {"any": ["b,"] * MAX_VALUES}}] * (MAX_FILTER_VALUES // MAX_VALUES)
SMALL = [{"key": "a", "match": {"value": ","}}] * (MAX_CONDITIONS - len(LISTS))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/embed/text", {"text": "," * MAX_TEXT, "normalize": True}),
        ("POST", "/embed/texts", {"texts": ['"[{,'] * ITEMS}),
        (
            "POST",
            "/v1/embeddings",
            {
                "model": "m",
                "input": [{"type": "image_url", "image_url": {"url": "data:,"}}] * ITEMS,
            },
        ),
        ("POST", "/rank", {"image": {"image_base64": "a"}, "texts": [","] * ITEMS}),
        ("POST", "/search", search(negative=search(), filter={"must": LISTS, "should": SMALL})),
        ("POST", "/search/batch", {"searches": [search(filter={"must": SMALL})] * MAX_SEARCHES}),
        (
            "POST",
            "/images",
            {"id": "a", "metadata": {"a": [1] * 30_000}, "duplicates": [","] * MAX_PLACES},
        ),
        ("PATCH", "/images/a", {"metadata": {"a": [1] * 30_000}, "paths": [","] * MAX_PLACES}),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_the_largest_requests_are_accepted(method: str, path: str, body: Any) -> None:
    checked = body_of(method, path, ITEMS)
    assert checked
    checked.add(json.dumps(body).encode())


def test_only_routes_with_a_json_body_have_one() -> None:
    assert body_of("GET", "/info", ITEMS) is None
    assert body_of("POST", "/embed/images", ITEMS) is None
    assert body_of("DELETE", "/images/a", ITEMS) is None


def test_a_filter_has_a_bound_for_the_values_of_all_its_lists() -> None:
    SearchRequest.model_validate({"text": "a", "filter": {"must": LISTS}})
    one_more = [*LISTS, {"key": "a", "match": {"except": [1]}}]
    with pytest.raises(ValueError, match="more than 5,000 values"):
        SearchRequest.model_validate({"text": "a", "filter": {"must_not": one_more}})
