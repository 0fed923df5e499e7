"""Search over both engines: composition, filters, paging, groups, diversity, many at once.

Vectors are random but fixed, so that every expected order is computed here by hand or by
qdrant-client's own grouping and MMR.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from qdrant_client import QdrantClient, models

from bento.contract.errors import CollectionNotFound, ImageNotFound, InvalidSearch, describe
from bento.contract.search import (
    Examples,
    ImageExample,
    SearchRequest,
    SearchResponse,
    image_example,
)
from rag.pictures.index import Picture, PictureIndex, point_id
from rag.search.diversity import CANDIDATES
from rag.search.query import compose
from rag.search.searcher import Searcher
from rag.settings import RagSettings
from rag.store.edge.collection import EdgeCollection
from rag.store.edge.store import EdgeStore
from rag.store.interface import ModelIdentity
from rag.store.server.collection import ServerCollection
from rag.store.server.store import ServerStore

DIM = 16
IDENTITY = ModelIdentity("fake", "random", "sha256:0", "none", DIM)
CATEGORIES = ("cat", "dog", "bird")


def vector_of(what: object) -> Any:
    """Return a fixed random unit vector for anything."""
    seed = int.from_bytes(hashlib.sha256(str(what).encode()).digest()[:4])
    vector = np.random.default_rng(seed).normal(size=DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class FakeEmbedder:
    """Gives `vector_of` a text, or of a picture's bytes."""

    async def embed_text(self, text: str, *, normalize: bool) -> Any:
        assert normalize
        return vector_of(text)

    async def embed_image(self, data: bytes, *, normalize: bool) -> Any:
        assert normalize
        return vector_of(data)


async def fetch(example: ImageExample) -> bytes:
    assert example.image_base64 is not None
    import base64

    return base64.b64decode(example.image_base64)


def picture(n: int) -> Picture:
    """Return picture n: of tenant `ours` below 60, with a category, tags and a number."""
    metadata = {
        "title": f"picture {n}",
        "category": CATEGORIES[n % 3],
        "tags": [f"t{n % 4}", f"t{n % 5}"],
        "n": n,
        "camera": {"lens": f"{n % 2 + 1}x", "of.whom": n % 7},
    }
    if n % 10 == 0:
        del metadata["category"]
    dao_id = "ours" if n < 60 else "theirs"
    return Picture(f"id{n}", f"picture {n}".encode(), f"/pictures/{n}.jpg", dao_id, metadata)


PICTURES = [picture(n) for n in range(100)]
VECTORS = np.stack([vector_of(p.data) for p in PICTURES])


def store_of(kind: str, folder: Path) -> Any:
    return EdgeStore(folder) if kind == "embedded" else ServerStore(QdrantClient(":memory:"))


@pytest.fixture(scope="module", params=["embedded", "local"])
def index(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[PictureIndex]:
    store = store_of(request.param, tmp_path_factory.mktemp("store"))
    index = PictureIndex(store, IDENTITY)
    index.add(PICTURES, VECTORS, "pictures")
    yield index
    store.close()


def find(index: PictureIndex, **fields: Any) -> SearchResponse:
    request = SearchRequest(**fields)
    settings = RagSettings(
        _env_file=None, image_search_collection="pictures", image_search_default_top_k=5
    )
    searcher = Searcher(index, FakeEmbedder(), fetch, settings, model="fake/random")
    return asyncio.run(searcher.search(request))


def page_to(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    for module in ("searcher", "groups"):
        monkeypatch.setattr(f"rag.search.{module}.MAX_DEPTH", depth)


def best(query: Any, among: Any = lambda n: True) -> list[int]:
    """Return picture numbers by cosine to a query vector, best first."""
    order = np.argsort(-(VECTORS @ query), kind="stable")
    return [int(n) for n in order if among(int(n))]


def numbers(answer: SearchResponse) -> list[int]:
    return [hit.payload["n"] for hit in answer.hits]


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


def test_an_image_is_searched_by_its_bytes_or_by_its_id(index: PictureIndex) -> None:
    by_bytes = find(index, image=image_example(PICTURES[7].data), top_k=4)
    assert numbers(by_bytes) == best(VECTORS[7])[:4]
    assert by_bytes.hits[0].id == "id7" and by_bytes.hits[0].score == pytest.approx(1, abs=1e-5)
    by_id = find(index, image=ImageExample(id="id7"), dao_id="ours", top_k=3)
    assert numbers(by_id) == best(VECTORS[7], lambda n: n < 60 and n != 7)[:3]


def test_examples_are_weighed_and_negative_ones_taken_away(index: PictureIndex) -> None:
    answer = find(
        index,
        text=["one", "two"],
        image=image_example(PICTURES[3].data),
        weights=[2.0, 0.5, 3.0],
        negative=Examples(text="night", image=[ImageExample(id="id4")]),
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
    stronger = find(index, text="one", negative=Examples(text="night", weights=[2.0]), top_k=9)
    assert numbers(stronger) == best(vector_of("one") - 2 * vector_of("night"))[:9]


def test_examples_that_cancel_out_are_refused(index: PictureIndex) -> None:
    with pytest.raises(InvalidSearch, match="cancel each other out"):
        find(index, text="same", negative=Examples(text="same", weights=[1.0]))
    assert compose([(vector_of("a"), 3.0)], []) == pytest.approx(vector_of("a"), abs=1e-6)


@pytest.mark.parametrize("weight", [1e-300, 1e-7, 1e-3, 100.0])
def test_only_the_proportions_of_weights_count(index: PictureIndex, weight: float) -> None:
    whole = find(index, text=["one", "two"], weights=[1.0, 1.0])
    assert numbers(find(index, text=["one", "two"], weights=[weight, weight])) == numbers(whole)
    assert numbers(find(index, text="one", weights=[weight])) == best(vector_of("one"))[:5]
    with pytest.raises(InvalidSearch, match="cancel each other out"):
        negative = Examples(text="same", weights=[weight])
        find(index, text="same", weights=[weight], negative=negative)


def test_filters_hold_for_payload_fields(index: PictureIndex) -> None:
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
def test_a_filter_that_is_none_names_the_place(
    index: PictureIndex, filter: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        find(index, text="query", filter=filter)
    assert said in describe(caught.value)


def test_pages_follow_each_other_and_end(index: PictureIndex) -> None:
    seen, offset, pages = [], 0, 0
    while offset is not None:
        answer = find(index, text="query", top_k=30, offset=offset)
        seen += numbers(answer)
        offset, pages = answer.next_offset, pages + 1
    assert pages == 4
    assert seen == best(vector_of("query"))
    assert find(index, text="query", top_k=100).next_offset is None
    assert find(index, text="query", top_k=99).next_offset == 99
    assert find(index, text="query", offset=100).hits == []
    with pytest.raises(InvalidSearch, match="offset is 10000; one can page through the 10000 best"):
        find(index, text="query", offset=10_000)


@pytest.mark.parametrize("how", [{}, {"group_by": "n"}, {"diversity": 0.5}], ids=str)
def test_every_next_offset_that_is_given_can_be_asked_for(
    index: PictureIndex, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    page_to(monkeypatch, 50)
    monkeypatch.setattr("rag.search.searcher.CANDIDATES", 50)
    monkeypatch.setattr("rag.search.groups._CHUNK", 25)
    seen, offset, pages = [], 0, []
    while offset is not None:
        answer = find(index, text="query", top_k=30, offset=offset, **how)
        seen += numbers(answer)
        offset = answer.next_offset
        pages.append(answer.count)
    assert pages == [30, 20]
    assert sorted(seen) == sorted(best(vector_of("query"))[:50])


def test_the_threshold_bounds_the_score(index: PictureIndex) -> None:
    scores = np.sort(VECTORS @ vector_of("query"))[::-1]
    threshold = float(scores[11] + scores[12]) / 2
    answer = find(index, text="query", top_k=100, score_threshold=threshold)
    assert answer.count == 12 and answer.next_offset is None


@pytest.fixture(scope="module")
def oracle() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    vectors = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection("pictures", vectors_config=vectors)
    client.upsert(
        "pictures",
        [
            models.PointStruct(
                id=point_id(p.dao_id, p.image_id), vector=v.tolist(), payload=p.payload()
            )
            for p, v in zip(PICTURES, VECTORS, strict=True)
        ],
    )
    yield client
    client.close()


@pytest.mark.parametrize("field", ["category", "tags", "camera.lens", 'camera."of.whom"', "n"])
@pytest.mark.parametrize(("groups", "size"), [(2, 1), (3, 4), (50, 3)])
def test_groups_are_those_of_qdrant(
    index: PictureIndex, oracle: QdrantClient, field: str, groups: int, size: int
) -> None:
    answer = find(index, text="query", group_by=field, top_k=groups, group_size=size)
    found = oracle.query_points_groups(
        "pictures",
        group_by=field,
        query=vector_of("query").tolist(),
        limit=groups,
        group_size=size,
        with_payload=True,
    ).groups
    expected = [(g.id, hit.payload["n"]) for g in found for hit in g.hits]
    assert [(hit.group, hit.payload["n"]) for hit in answer.hits] == expected


def test_groups_are_filled_and_paged_where_one_value_is_rare(
    index: PictureIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = find(index, text="query", group_by="tags", top_k=5, group_size=100)
    monkeypatch.setattr("rag.search.groups._CHUNK", 7)  # as if there were very many pictures
    assert find(index, text="query", group_by="tags", top_k=5, group_size=100) == whole
    two = find(index, text="query", group_by="tags", top_k=2, group_size=100)
    wanted = list(dict.fromkeys(hit.group for hit in whole.hits))[:2]
    assert two.hits == [hit for hit in whole.hits if hit.group in wanted]
    first = find(index, text="query", group_by="tags", top_k=3, group_size=2)
    rest = find(index, text="query", group_by="tags", top_k=3, group_size=2, offset=3)
    assert first.next_offset == 3 and rest.next_offset is None
    values = list(dict.fromkeys(hit.group for hit in [*first.hits, *rest.hits]))
    assert values == list(dict.fromkeys(hit.group for hit in whole.hits))


@pytest.mark.parametrize("offset", [0, 30])
def test_many_groups_are_filled_by_one_query(
    index: PictureIndex, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    monkeypatch.setattr("rag.search.groups._CHUNK", 10)
    queries = counted(monkeypatch)
    answer = find(index, text="query", group_by="n", group_size=2, top_k=25, offset=offset)
    assert numbers(answer) == best(vector_of("query"))[offset : offset + 25]
    assert (answer.next_offset, len(queries)) == (offset + 25, 1 + (offset + 26 + 9) // 10)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that has how many each query to a collection asks for from now on."""
    asked: list[int] = []

    def counting(query: Any) -> Any:
        def count(self: Any, vector: Any, top_k: int, **options: Any) -> Any:
            asked.append(top_k)
            return query(self, vector, top_k, **options)

        return count

    for kind in (EdgeCollection, ServerCollection):
        monkeypatch.setattr(kind, "query", counting(kind.query))
    return asked


def test_filling_groups_ends(index: PictureIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.search.groups._CHUNK", 10)
    monkeypatch.setattr("rag.search.groups._FURTHER", 1)
    page_to(monkeypatch, 30)
    queries = counted(monkeypatch)
    answer = find(index, text="query", group_by="tags", group_size=15, top_k=5)
    assert len(queries) <= 3 + 1 + 1
    assert len({(hit.group, hit.id) for hit in answer.hits}) == answer.count


@pytest.fixture(params=["embedded", "local"])
def clusters(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PictureIndex]:
    """Pictures in the order of their numbers for the text `query`, with values in clusters."""
    values = [*[None] * 10, *["big"] * 25, *[["big", "both"], 7, "7", 1.5] * 5, *["last"] * 5]
    store = store_of(request.param, tmp_path)
    index = PictureIndex(store, IDENTITY)
    away = np.linalg.svd(vector_of("query")[None])[2][1]  # at right angles
    vectors = [vector_of("query") + 0.02 * (n + 1) * away for n in range(len(values))]
    pictures = [
        Picture(f"id{n}", str(n).encode(), "", "ours", {"n": n} | ({"g": g} if g else {}))
        for n, g in enumerate(values)
    ]
    index.add(pictures, np.asarray(vectors, np.float32), "pictures")
    yield index
    store.close()


@pytest.mark.parametrize("size", [1, 3, 10])
def test_groups_below_what_can_be_paged_through_are_found(
    clusters: PictureIndex, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def found(**fields: Any) -> tuple[list[Any], int | None]:
        answer = find(clusters, text="query", group_by="g", group_size=size, **fields)
        return [(hit.group, hit.payload["n"]) for hit in answer.hits], answer.next_offset

    whole, _ = found(top_k=10)
    assert list(dict(whole)) == ["big", "both", 7, "7", "last"]
    monkeypatch.setattr("rag.search.groups._CHUNK", 5)
    for depth in (10, 20, 40):
        page_to(monkeypatch, depth)
        assert found(top_k=5) == (whole, None)
        assert found(top_k=4) == ([hit for hit in whole if hit[0] != "last"], 4)


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.7, 1.0])
def test_diversity_is_qdrants_maximal_marginal_relevance(
    index: PictureIndex, oracle: QdrantClient, diversity: float
) -> None:
    answer = find(index, text="query", diversity=diversity, top_k=12)
    mmr = models.Mmr(diversity=diversity, candidates_limit=CANDIDATES)
    found = oracle.query_points(
        "pictures",
        query=models.NearestQuery(nearest=vector_of("query").tolist(), mmr=mmr),
        limit=12,
        with_payload=True,
    ).points
    assert numbers(answer) == [point.payload["n"] for point in found if point.payload]
    assert answer.next_offset == 12
    second = find(index, text="query", diversity=diversity, top_k=6, offset=6)
    assert numbers(second) == numbers(answer)[6:]


def test_diversity_has_bounds(index: PictureIndex) -> None:
    with pytest.raises(InvalidSearch, match="through the 500 best with diversity"):
        find(index, text="query", diversity=0.5, offset=500, top_k=1)
    with pytest.raises(InvalidSearch, match="cannot be combined"):
        find(index, text="query", diversity=0.5, group_by="tags")
    none = find(index, text="query", diversity=0.5, dao_id="nobody")
    assert (none.hits, none.next_offset) == ([], None)


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
    {"negative": Examples(text="query", weights=[100.0])},
]


@pytest.mark.parametrize("fields", HOSTILE, ids=str)
def test_no_parameter_reaches_another_tenants_pictures(
    index: PictureIndex, fields: dict[str, Any]
) -> None:
    for query in ({"text": "query"}, {"image": image_example(PICTURES[99].data)}):
        answer = find(index, **query, **fields, dao_id="ours")
        assert {hit.payload["dao_id"] for hit in answer.hits} <= {"ours"}


def test_another_tenants_picture_is_no_example(index: PictureIndex) -> None:
    assert find(index, image=ImageExample(id="id99"), dao_id="theirs").success
    for fields in (
        {"image": ImageExample(id="id99")},
        {"text": "query", "negative": Examples(image=ImageExample(id="id99"))},
    ):
        with pytest.raises(ImageNotFound, match="no picture 'id99' with dao_id 'ours'"):
            find(index, **fields, dao_id="ours")


def test_a_missing_collection_is_said_so(index: PictureIndex) -> None:
    with pytest.raises(CollectionNotFound, match="'none'"):
        find(index, text="query", collection="none")
    with pytest.raises(CollectionNotFound, match="'none'"):
        find(index, image=ImageExample(id="id1"), collection="none")
