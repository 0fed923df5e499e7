"""Grouped and diverse searches over both engines, compared with qdrant-client's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from bento.contract.errors import InvalidSearch
from bento.contract.search import SearchResponse
from rag.pictures.index import Picture, PictureIndex, point_id
from rag.search.limits import DEFAULT_LIMITS, Limits
from rag.store.edge.collection import EdgeCollection
from rag.store.server.collection import ServerCollection
from tests.support.rag.engines import quick_folder
from tests.support.rag.searching import (
    DIM,
    IDENTITY,
    PICTURES,
    VECTORS,
    best,
    find,
    numbers,
    store_of,
    vector_of,
)

pytestmark = pytest.mark.service  # for qdrant-client, whose import takes a second


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
def test_groups_equal_those_of_qdrant(
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
    expected = [(g.id, hit.payload["n"]) for g in found for hit in g.hits if hit.payload]
    assert [(hit.group, hit.payload["n"]) for hit in answer.hits] == expected


def test_groups_with_a_rare_value_are_filled_and_paged(index: PictureIndex) -> None:
    whole = find(index, text="query", group_by="tags", top_k=5, group_size=100)
    small = Limits(chunk=7)  # the collection is large in comparison

    def tagged(**fields: Any) -> SearchResponse:
        return find(index, text="query", group_by="tags", limits=small, **fields)

    assert tagged(top_k=5, group_size=100) == whole
    two = tagged(top_k=2, group_size=100)
    wanted = list(dict.fromkeys(hit.group for hit in whole.hits))[:2]
    assert two.hits == [hit for hit in whole.hits if hit.group in wanted]
    first = tagged(top_k=3, group_size=2)
    rest = tagged(top_k=3, group_size=2, offset=3)
    assert (first.next_offset, rest.next_offset) == (3, None)
    values = list(dict.fromkeys(hit.group for hit in [*first.hits, *rest.hits]))
    assert values == list(dict.fromkeys(hit.group for hit in whole.hits))


@pytest.mark.parametrize("offset", [0, 30])
def test_one_query_fills_many_groups(
    index: PictureIndex, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    queries = counted(monkeypatch)
    answer = find(
        index,
        limits=Limits(chunk=10),
        text="query",
        group_by="n",
        group_size=2,
        top_k=25,
        offset=offset,
    )
    assert numbers(answer) == best(vector_of("query"))[offset : offset + 25]
    assert (answer.next_offset, len(queries)) == (offset + 25, 1 + (offset + 26 + 9) // 10)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the `top_k` of each later query to a collection in the list that is returned."""
    asked: list[int] = []

    def counting(query: Any) -> Any:
        def count(self: Any, vector: Any, top_k: int, **options: Any) -> Any:
            asked.append(top_k)
            return query(self, vector, top_k, **options)

        return count

    for kind in (EdgeCollection, ServerCollection):
        monkeypatch.setattr(kind, "query", counting(kind.query))
    return asked


def test_filling_groups_stops_after_a_limit_of_queries(
    index: PictureIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = counted(monkeypatch)
    limits = Limits(depth=30, chunk=10, further=1)
    answer = find(index, limits=limits, text="query", group_by="tags", group_size=15, top_k=5)
    assert len(queries) <= 3 + 1 + 1
    assert len({(hit.group, hit.id) for hit in answer.hits}) == answer.count


@pytest.fixture(params=["embedded", "local"])
def clusters(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PictureIndex]:
    """Index pictures that the text `query` finds in the order of their numbers."""
    values = [*[None] * 10, *["big"] * 25, *[["big", "both"], 7, "7", 1.5] * 5, *["last"] * 5]
    away = np.linalg.svd(vector_of("query")[None])[2][1]  # orthogonal to the query
    vectors = [vector_of("query") + 0.02 * (n + 1) * away for n in range(len(values))]
    pictures = [
        Picture(f"id{n}", str(n).encode(), "", "ours", {"n": n} | ({"g": g} if g else {}))
        for n, g in enumerate(values)
    ]
    with quick_folder(tmp_path) as folder:
        store = store_of(request.param, folder)
        index = PictureIndex(store, IDENTITY)
        index.add(pictures, np.asarray(vectors, np.float32), "pictures")
        yield index
        store.close()


@pytest.mark.parametrize("size", [1, 3, 10])
def test_groups_beyond_the_depth_of_paging_are_found(clusters: PictureIndex, size: int) -> None:
    def found(limits: Limits, top_k: int) -> tuple[list[Any], int | None]:
        answer = find(
            clusters, limits=limits, text="query", group_by="g", group_size=size, top_k=top_k
        )
        return [(hit.group, hit.payload["n"]) for hit in answer.hits], answer.next_offset

    whole, _ = found(DEFAULT_LIMITS, 10)
    assert list(dict(whole)) == ["big", "both", 7, "7", "last"]
    for depth in (10, 20, 40):
        limits = Limits(depth=depth, chunk=5)
        assert found(limits, 5) == (whole, None)
        assert found(limits, 4) == ([hit for hit in whole if hit[0] != "last"], 4)


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.7, 1.0])
def test_diversity_equals_maximal_marginal_relevance_of_qdrant(
    index: PictureIndex, oracle: QdrantClient, diversity: float
) -> None:
    answer = find(index, text="query", diversity=diversity, top_k=12)
    mmr = models.Mmr(diversity=diversity, candidates_limit=DEFAULT_LIMITS.candidates)
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


def test_diversity_limits_the_offset_and_excludes_groups(index: PictureIndex) -> None:
    with pytest.raises(InvalidSearch, match="with diversity reaches only the 500 best"):
        find(index, text="query", diversity=0.5, offset=500, top_k=1)
    with pytest.raises(InvalidSearch, match="cannot be combined"):
        find(index, text="query", diversity=0.5, group_by="tags")
    none = find(index, text="query", diversity=0.5, dao_id="nobody")
    assert (none.hits, none.next_offset) == ([], None)
