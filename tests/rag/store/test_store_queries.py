"""Behavior that all engines share: queries and scrolling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bento.contract.errors import InvalidSearch
from bento.contract.filters import parse_filter, tenant
from tests.support.rag.engines import DIM, cosines, make_points, point_id
from tests.support.rag.stores import Engine


def test_hits_are_the_most_similar_first_with_cosine_scores(engine: Engine) -> None:
    collection = engine.open()
    points = make_points(200)
    collection.upsert(points)
    query = np.random.default_rng(7).normal(size=DIM).astype(np.float32)

    matches = collection.query(query, 20)

    expected = cosines(points, query)
    best = np.argsort(-expected)[:20]
    assert [m.id for m in matches] == [points[n].id for n in best]
    np.testing.assert_allclose([m.score for m in matches], expected[best], atol=1e-5)
    assert [m.payload for m in matches] == [points[n].payload for n in best]
    assert all(m.vector is None for m in matches)


@pytest.mark.parametrize("length", [1e-30, 1e-5, 1e5, 1e30])
def test_the_length_of_a_vector_does_not_change_its_score(engine: Engine, length: float) -> None:
    collection = engine.open()
    points = make_points(3)
    collection.upsert([replace(p, vector=p.vector * np.float32(length)) for p in points])

    matches = collection.query(points[1].vector * np.float32(length), 3)

    assert matches[0].id == points[1].id
    expected = np.sort(cosines(points, points[1].vector))[::-1]
    np.testing.assert_allclose([m.score for m in matches], expected, atol=1e-5)


def test_pages_of_a_query_add_up_to_all_its_hits(engine: Engine) -> None:
    collection = engine.open()
    points = make_points(50)
    collection.upsert(points)
    vector = points[0].vector

    pages = [collection.query(vector, 20, offset=offset) for offset in (0, 20, 40, 60)]

    assert [len(page) for page in pages] == [20, 20, 10, 0]
    assert [m.id for page in pages for m in page] == [m.id for m in collection.query(vector, 50)]


def test_equal_scores_are_in_the_order_of_ids(engine: Engine) -> None:
    collection = engine.open()
    one, *others = make_points(40)
    collection.upsert([replace(p, vector=one.vector) for p in [*others, one]])

    matches = collection.query(one.vector, 40)

    assert [m.id for m in matches] == sorted(p.id for p in [one, *others])


def test_pages_of_equal_scores_neither_skip_nor_repeat_points(engine: Engine) -> None:
    collection = engine.open()
    points = make_points(60)
    better, same, worse = points[:10], points[10:50], points[50:]
    query, other = np.eye(DIM, dtype=np.float32)[:2]
    collection.upsert(
        [
            *(replace(p, vector=query + 0.01 * p.vector) for p in better),
            *(replace(p, vector=query + other) for p in same),
            *(replace(p, vector=0.01 * p.vector - query) for p in worse),
        ]
    )

    pages = [collection.query(query, 7, offset=offset) for offset in range(0, 70, 7)]

    found = [match for page in pages for match in page]
    assert [len(page) for page in pages] == [7] * 8 + [4, 0]
    assert {m.id for m in found[:10]} == {p.id for p in better}
    assert [m.id for m in found[10:50]] == sorted(p.id for p in same)
    assert {m.id for m in found[50:]} == {p.id for p in worse}
    payload_of = {p.id: p.payload for p in points}
    assert all(m.payload == payload_of[m.id] and m.vector is None for m in found)
    beyond = collection.query(query, 7, offset=14, with_vectors=True)
    assert [m.id for m in beyond] == [m.id for m in pages[2]]
    for match in beyond:
        assert match.vector is not None
        np.testing.assert_allclose(match.vector, (query + other) / 2**0.5, atol=1e-6)


def test_vectors_are_returned_on_request_and_have_length_1(engine: Engine) -> None:
    collection = engine.open()
    points = make_points(20)
    collection.upsert(points)
    given = {p.id: p.vector / np.linalg.norm(p.vector) for p in points}

    found = collection.query(points[0].vector, 20, with_vectors=True)
    held = collection.retrieve(list(given), with_vectors=True)

    for vectors in ({m.id: m.vector for m in found}, {r.id: r.vector for r in held.values()}):
        assert vectors.keys() == given.keys()
        for id, vector in vectors.items():
            assert vector is not None
            assert vector.dtype == np.float32
            assert vector.shape == (DIM,)
            np.testing.assert_allclose(vector, given[id], atol=1e-6)
    assert collection.retrieve([points[0].id])[points[0].id].vector is None


def test_a_tenant_sees_only_its_own_points(engine: Engine) -> None:
    collection = engine.open()
    ours, theirs = make_points(5, 1, dao_id="ours"), make_points(7, 2, dao_id="theirs")
    collection.upsert(ours + theirs + make_points(3, 3))
    query = theirs[0].vector

    def found(dao_id: str) -> set[str]:
        return {m.id for m in collection.query(query, 50, filter=tenant(dao_id))}

    assert found("ours") == {p.id for p in ours}
    assert found("nobody") == found("") == set()
    assert len(collection.query(query, 50)) == 15
    counts = [collection.count(filter=tenant(d)) for d in ("ours", "theirs", "")]
    assert [*counts, collection.count()] == [5, 7, 0, 15]


def test_a_filtered_query_finds_the_best_points_that_pass(engine: Engine) -> None:
    collection = engine.open()
    points = make_points(200)
    collection.upsert(points)
    wanted = parse_filter({"must": {"key": "n", "range": {"gte": 50.0, "lt": 150.0}}})

    matches = collection.query(points[60].vector, 5, offset=2, filter=wanted)

    expected = cosines(points[50:150], points[60].vector)
    assert [m.payload["n"] for m in matches] == [n + 50 for n in np.argsort(-expected)[2:7]]


def test_points_below_the_score_threshold_are_left_out(engine: Engine) -> None:
    collection = engine.open()
    points = make_points(100)
    collection.upsert(points)
    expected = np.sort(cosines(points, points[0].vector))[::-1]
    threshold = float(expected[9] + expected[10]) / 2

    found = collection.query(points[0].vector, 100, score_threshold=threshold)

    assert len(found) == 10
    assert len(collection.query(points[0].vector, 100, score_threshold=-1)) == 100


def test_a_score_equal_to_the_threshold_is_found(engine: Engine) -> None:
    collection = engine.open()
    points = make_points(30)
    collection.upsert(points)
    for n, point in enumerate(points):
        copies = collection.query(point.vector, 30, score_threshold=1)
        assert [m.id for m in copies] == [point.id]
        found = collection.query(point.vector, 30)
        meets = collection.query(point.vector, 30, score_threshold=found[n].score)
        assert [m.id for m in meets] == [m.id for m in found[: n + 1]]


def test_scroll_lists_all_points_in_the_order_of_ids(engine: Engine) -> None:
    collection = engine.open()
    points = make_points(25, dao_id="ours")
    collection.upsert([*points, *make_points(20, 1, dao_id="theirs")])

    pages, start = [], None
    while True:
        page, start = collection.scroll(filter=tenant("ours"), limit=10, start=start)
        pages.append(page)
        if start is None:
            break
        assert start == sorted(p.id for p in points)[10 * len(pages)]

    assert [len(page) for page in pages] == [10, 10, 5]
    records = [record for page in pages for record in page]
    assert [r.id for r in records] == sorted(p.id for p in points)
    assert {r.id: r.payload for r in records} == {p.id: p.payload for p in points}
    assert len(collection.scroll()[0]) == 45
    [first] = collection.scroll(limit=1, start=records[3].id.upper())[0]
    assert first.id == records[3].id


def test_bad_arguments_of_queries_are_rejected(engine: Engine) -> None:
    collection = engine.open()
    good = np.ones(DIM, np.float32)
    for bad in (np.ones(DIM + 1, np.float32), np.full(DIM, np.nan, np.float32), good * 0):
        with pytest.raises(InvalidSearch, match="the query vector"):
            collection.query(bad, 1)
    for top_k, offset in ((0, 0), (-1, 0), (10_001, 0), (1, -1), (1, 10_000)):
        with pytest.raises(InvalidSearch, match=f"top_k is {top_k} and offset {offset}"):
            collection.query(good, top_k, offset=offset)
    with pytest.raises(InvalidSearch, match="score_threshold"):
        collection.query(good, 1, score_threshold=float("nan"))
    for call in (collection.retrieve, collection.delete):
        with pytest.raises(InvalidSearch, match="not a UUID"):
            call([point_id(1), "../x"])
    with pytest.raises(InvalidSearch, match="not a UUID"):
        collection.scroll(start="next")
    for limit in (0, -1, 10_001):
        with pytest.raises(InvalidSearch, match=f"limit is {limit}"):
            collection.scroll(limit=limit)
