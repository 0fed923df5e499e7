"""Pages with at most so many bytes of payloads lose and repeat nothing, on both engines."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

import rag.pictures.index as pictures
from bento.contract.errors import InvalidSearch
from bento.contract.search import ManySearchesRequest
from rag.pictures.index import PictureIndex
from rag.pictures.sizes import PageSize
from rag.search.limits import DEFAULT_LIMITS, Limits
from rag.search.searcher import Searcher
from rag.settings import RagSettings
from rag.store.edge import collection
from tests.support.rag.searching import PICTURES, FakeEmbedder, fetch, find, numbers

ONE = len(json.dumps({**PICTURES[12].payload(), "indexed_at": "2026-12-01T12:00:00.123456+00:00"}))
SMALL = replace(DEFAULT_LIMITS, page_bytes=7 * ONE)


def pages(index: PictureIndex, limits: Limits, **fields: Any) -> list[list[int]]:
    found, offset = [], 0
    while True:
        answer = find(index, limits=limits, offset=offset, **fields)
        found.append(numbers(answer))
        if answer.next_offset is None:
            return found
        assert answer.next_offset > offset
        offset = answer.next_offset


@pytest.mark.parametrize("kind", [{}, {"diversity": 0.5}, {"dao_id": "ours"}], ids=str)
@pytest.mark.parametrize("top_k", [5, 40, 100])
def test_short_pages_lose_and_repeat_nothing(
    index: PictureIndex, kind: dict[str, Any], top_k: int
) -> None:
    whole = [n for page in pages(index, DEFAULT_LIMITS, text="a", top_k=100, **kind) for n in page]
    short = pages(index, SMALL, text="a", top_k=top_k, **kind)
    assert [n for page in short for n in page] == whole
    assert max(map(len, short)) <= 8
    assert len(short) >= len(whole) // 8


@pytest.mark.parametrize("size", [1, 3])
def test_short_pages_of_groups_end_between_groups(index: PictureIndex, size: int) -> None:
    fields: dict[str, Any] = {"text": "a", "group_by": 'camera."of.whom"', "group_size": size}
    (whole,) = pages(index, DEFAULT_LIMITS, top_k=10, **fields)
    small = replace(DEFAULT_LIMITS, page_bytes=4 * ONE)
    short = pages(index, small, top_k=10, **fields)
    assert [n for page in short for n in page] == whole
    assert len(short) > 1
    assert all(len(page) % size == 0 for page in short)


def test_a_page_has_at_least_one_hit(index: PictureIndex) -> None:
    tiny = replace(DEFAULT_LIMITS, page_bytes=1)
    assert len(pages(index, tiny, text="a", top_k=30, dao_id="ours")) == 60
    groups = pages(index, tiny, text="a", group_by="category", group_size=2)
    assert [len(page) for page in groups] == [1, 1, 1]


def test_the_searches_of_a_batch_share_the_bytes_of_a_page(index: PictureIndex) -> None:
    settings = RagSettings(_env_file=None, image_search_collection="pictures")
    searcher = Searcher(index, FakeEmbedder(), fetch, settings, "fake/random", limits=SMALL)
    body = {"text": "a", "top_k": 100}
    answer = asyncio.run(searcher.search_many(ManySearchesRequest(searches=[body] * 3)))
    assert [one.count for one in answer.results] == [2, 2, 2]
    assert {one.next_offset for one in answer.results} == {2}


def test_pages_of_a_listing_are_bounded_too(
    index: PictureIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = index.page("pictures")
    monkeypatch.setattr(pictures, "MAX_PAGE_BYTES", 7 * ONE)
    found, start = [], None
    while True:
        page, start = index.page("pictures", limit=50, start=start)
        assert 1 <= len(page) <= 8
        found += page
        if start is None:
            break
    assert found == whole


def test_steps_follow_the_size_of_the_payloads_so_far() -> None:
    size = PageSize(1000)
    assert size.step(5) == 5
    assert size.step(1000) == 100
    assert size.fits({"a": "x" * 91})  # 100 bytes
    assert size.step(1000) == 9
    assert size.fits({"a": "x" * 791})
    assert size.step(1000) == 1
    assert not size.fits({"a": "x" * 800})


def test_many_conditions_on_many_pictures_are_rejected_by_the_embedded_store(
    index: PictureIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "MAX_CHECKS", 2000)

    def search(count: int) -> int:
        conditions = [{"key": "n", "range": {"gt": -i}} for i in range(1, count + 1)]
        nested = {"must": [{"should": conditions[:5]}, *conditions[5:]]}
        return find(index, text="a", filter=nested).count

    assert search(20) == 5
    embedded = isinstance(index.open("pictures"), collection.EdgeCollection)
    if embedded:
        with pytest.raises(InvalidSearch, match=r"21 conditions, .* 100 pictures .* at most 20"):
            search(21)
    else:
        assert search(21) == 5
