"""Search over both engines: examples, filters, paging, tenants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from bento.contract.errors import CollectionNotFound, ImageNotFound, InvalidSearch, describe
from bento.contract.search import Examples, ImageExample, image_example
from rag.pictures.index import PictureIndex
from rag.search.limits import Limits
from rag.search.query import compose
from tests.support.rag.searching import PICTURES, VECTORS, best, find, numbers, vector_of


def test_a_text_finds_the_most_similar_pictures_first(index: PictureIndex) -> None:
    answer = find(index, text="query", language="en")
    expected = best(vector_of("query"))[:5]
    assert numbers(answer) == expected
    hit = answer.hits[0]
    assert (hit.id, hit.path) == (f"id{expected[0]}", f"/pictures/{expected[0]}.jpg")
    assert hit.score == pytest.approx(float(VECTORS[expected[0]] @ vector_of("query")), abs=1e-5)
    assert (answer.success, answer.count, answer.model) == (True, 5, "fake/random")
    assert answer.formatted_text.startswith(f"Found 5 images:\n1. picture {expected[0]} (")
    assert "Знайдено 5 зображень" in find(index, text="query").formatted_text


def test_an_image_example_is_a_file_or_an_indexed_picture(index: PictureIndex) -> None:
    by_bytes = find(index, image=image_example(PICTURES[7].data), top_k=4)
    assert numbers(by_bytes) == best(VECTORS[7])[:4]
    assert by_bytes.hits[0].id == "id7"
    assert by_bytes.hits[0].score == pytest.approx(1, abs=1e-5)
    by_id = find(index, image=ImageExample(id="id7"), dao_id="ours", top_k=3)
    assert numbers(by_id) == best(VECTORS[7], lambda n: n < 60 and n != 7)[:3]


def test_examples_are_weighted_and_negative_ones_subtracted(index: PictureIndex) -> None:
    answer = find(
        index,
        text=["one", "two"],
        image=image_example(PICTURES[3].data),
        weights=[2.0, 0.5, 3.0],
        negative=Examples(text=["night"], image=[ImageExample(id="id4")]),
        dao_id="ours",
        top_k=60,
    )
    query = (
        2 * vector_of("one")
        + 0.5 * vector_of("two")
        + 3 * VECTORS[3]
        - 0.5 * vector_of("night")
        - 0.5 * VECTORS[4]
    )
    query = query / np.linalg.norm(query)
    assert numbers(answer) == best(query, lambda n: n < 60 and n != 4)
    np.testing.assert_allclose(
        [hit.score for hit in answer.hits], (VECTORS @ query)[numbers(answer)], atol=1e-5
    )
    stronger = find(index, text="one", negative=Examples(text=["night"], weights=[2.0]), top_k=9)
    assert numbers(stronger) == best(vector_of("one") - 2 * vector_of("night"))[:9]


def test_examples_that_cancel_out_are_rejected(index: PictureIndex) -> None:
    with pytest.raises(InvalidSearch, match="cancel each other out"):
        find(index, text="same", negative=Examples(text=["same"], weights=[1.0]))
    assert compose([(vector_of("a"), 3.0)], []) == pytest.approx(vector_of("a"), abs=1e-6)


@pytest.mark.parametrize("weight", [1e-300, 1e-7, 1e-3, 100.0])
def test_only_the_proportions_of_weights_count(index: PictureIndex, weight: float) -> None:
    whole = find(index, text=["one", "two"], weights=[1.0, 1.0])
    assert numbers(find(index, text=["one", "two"], weights=[weight, weight])) == numbers(whole)
    assert numbers(find(index, text="one", weights=[weight])) == best(vector_of("one"))[:5]
    negative = Examples(text=["same"], weights=[weight])
    with pytest.raises(InvalidSearch) as caught:
        find(index, text="same", weights=[weight], negative=negative)
    assert caught.value.code == "invalid_request"


def test_filters_select_by_payload_fields(index: PictureIndex) -> None:
    query = best(vector_of("query"))
    cases: list[tuple[dict[str, Any], Any]] = [
        (
            {"must": [{"key": "category", "match": {"value": "dog"}}]},
            lambda n: n % 3 == 1 and n % 10,
        ),
        ({"must": [{"key": "tags", "match": {"any": ["t0"]}}]}, lambda n: n % 4 == 0 or n % 5 == 0),
        (
            {"must_not": [{"key": "tags", "match": {"value": "t1"}}]},
            lambda n: n % 4 != 1 and n % 5 != 1,
        ),
        ({"must": [{"key": "n", "range": {"gte": 10, "lt": 20}}]}, lambda n: 10 <= n < 20),
        ({"must": [{"key": "camera.lens", "match": {"value": "2x"}}]}, lambda n: n % 2),
        ({"must": [{"is_empty": {"key": "category"}}]}, lambda n: n % 10 == 0),
        (
            {"should": [{"key": "n", "match": {"value": 4}}, {"key": "n", "match": {"value": 9}}]},
            lambda n: n in (4, 9),
        ),
        ({"must": [{"key": "indexed_at", "range": {"gt": "2020-01-01"}}]}, lambda n: True),
        (
            {"must": [{"key": "indexed_at", "range": {"lt": "2020-01-01T00:00:00Z"}}]},
            lambda n: False,
        ),
    ]
    for filter, among in cases:
        answer = find(index, text="query", filter=filter, top_k=100)
        assert numbers(answer) == [n for n in query if among(n)], filter


@pytest.mark.parametrize(
    ("filter", "said"),
    [
        (
            {"must": [{"kay": "tags"}]},
            "filter.must.0: give an object with must, should or must_not",
        ),
        ({"musst": []}, 'filter: "musst" is not allowed here: give must, should, must_not'),
    ],
)
def test_an_invalid_filter_is_rejected_with_its_place(
    index: PictureIndex, filter: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        find(index, text="query", filter=filter)
    assert said in describe(caught.value)


def test_pages_continue_until_the_last_hit(index: PictureIndex) -> None:
    seen: list[int] = []
    offset: int | None = 0
    pages = 0
    while offset is not None:
        answer = find(index, text="query", top_k=30, offset=offset)
        seen += numbers(answer)
        offset, pages = answer.next_offset, pages + 1
    assert pages == 4
    assert seen == best(vector_of("query"))
    assert find(index, text="query", top_k=100).next_offset is None
    assert find(index, text="query", top_k=99).next_offset == 99
    assert find(index, text="query", offset=100).hits == []
    with pytest.raises(InvalidSearch, match="offset is 10000; a search reaches only the 10,000"):
        find(index, text="query", offset=10_000)


@pytest.mark.parametrize("how", [{}, {"group_by": "n"}, {"diversity": 0.5}], ids=str)
def test_every_next_offset_is_a_valid_offset(index: PictureIndex, how: dict[str, Any]) -> None:
    limits = Limits(depth=50, candidates=50, chunk=25)
    seen: list[int] = []
    offset: int | None = 0
    pages = []
    while offset is not None:
        answer = find(index, limits=limits, text="query", top_k=30, offset=offset, **how)
        seen += numbers(answer)
        offset = answer.next_offset
        pages.append(answer.count)
    assert pages == [30, 20]
    assert sorted(seen) == sorted(best(vector_of("query"))[:50])


def test_the_threshold_excludes_lower_scores(index: PictureIndex) -> None:
    scores = np.sort(VECTORS @ vector_of("query"))[::-1]
    threshold = float(scores[11] + scores[12]) / 2
    answer = find(index, text="query", top_k=100, score_threshold=threshold)
    assert (answer.count, answer.next_offset) == (12, None)


HOSTILE: list[dict[str, Any]] = [
    {},
    {"top_k": 1000},
    {"offset": 5, "top_k": 1000},
    {"score_threshold": -1.0},
    {"group_by": "dao_id", "group_size": 100},
    {"group_by": "tags", "group_size": 100, "top_k": 100},
    {"diversity": 1.0, "top_k": 400},
    {"filter": {"must": [{"key": "dao_id", "match": {"value": "theirs"}}]}},
    {"filter": {"should": [{"key": "dao_id", "match": {"any": ["theirs", "ours"]}}]}},
    {"filter": {"should": [{"must_not": [{"key": "dao_id", "match": {"value": "ours"}}]}]}},
    {"filter": {"must_not": [{"key": "dao_id", "match": {"value": "ours"}}]}},
    {"filter": {"should": [{"is_empty": {"key": "nothing"}}]}},
    {"filter": {"must": [{"key": "image_id", "match": {"any": [f"id{n}" for n in range(100)]}}]}},
    {"filter": {"must": [], "should": [], "must_not": []}},
    {"negative": Examples(text=["query"], weights=[100.0])},
]


@pytest.mark.parametrize("fields", HOSTILE, ids=str)
def test_no_parameter_reaches_another_tenants_pictures(
    index: PictureIndex, fields: dict[str, Any]
) -> None:
    for query in ({"text": "query"}, {"image": image_example(PICTURES[99].data)}):
        answer = find(index, **query, **fields, dao_id="ours")
        assert {hit.payload["dao_id"] for hit in answer.hits} <= {"ours"}


def test_another_tenants_picture_cannot_be_an_example(index: PictureIndex) -> None:
    assert find(index, image=ImageExample(id="id99"), dao_id="theirs").success
    for fields in (
        {"image": ImageExample(id="id99")},
        {"text": "query", "negative": Examples(image=[ImageExample(id="id99")])},
    ):
        with pytest.raises(ImageNotFound):
            find(index, **fields, dao_id="ours")


def test_a_search_in_a_missing_collection_fails(index: PictureIndex) -> None:
    with pytest.raises(CollectionNotFound):
        find(index, text="query", collection="none")
    with pytest.raises(CollectionNotFound):
        find(index, image=ImageExample(id="id1"), collection="none")
