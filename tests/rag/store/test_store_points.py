"""Behavior that all engines share: writing, retrieving and deleting points."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bento.contract.errors import InvalidSearch
from bento.contract.filters import all_of, match_any
from rag.store.checks import MAX_LEVELS
from tests.support.rag.engines import DIM, make_points, point_id
from tests.support.rag.stores import Engine


def test_a_point_with_the_same_id_replaces_the_old_one(engine: Engine) -> None:
    collection = engine.open()
    old, new = make_points(2)
    new = replace(new, id=old.id.upper(), payload={"title": "new"})
    collection.upsert([old])
    collection.upsert([new])

    assert collection.count() == 1
    assert collection.retrieve([old.id])[old.id].payload == {"title": "new"}
    assert collection.query(new.vector, 1)[0].score == pytest.approx(1, abs=1e-5)


def test_the_last_of_two_points_with_the_same_id_is_written(engine: Engine) -> None:
    collection = engine.open()
    first, second = make_points(2)
    collection.upsert([first, replace(second, id=first.id)])

    assert collection.count() == 1
    assert collection.retrieve([first.id])[first.id].payload == second.payload


def test_overwriting_payloads_replaces_them_and_keeps_vectors(engine: Engine) -> None:
    collection = engine.open()
    points = make_points(260, dao_id="ours", tags=["old"])
    collection.upsert(points)
    new = {p.id: {"n": -n, "tags": ["new", str(n)]} for n, p in enumerate(points[:-1])}

    missing = point_id("missing")
    assert collection.overwrite_payloads({**new, missing: {"n": 0}}) == 259
    assert collection.overwrite_payloads({}) == 0
    assert collection.overwrite_payloads({points[0].id.upper(): {"n": 7}}) == 1

    new[points[0].id] = {"n": 7}
    new[points[-1].id] = points[-1].payload
    held = collection.retrieve([p.id for p in points], with_vectors=True)
    assert {id: record.payload for id, record in held.items()} == new
    for point in points:
        vector = held[point.id].vector
        assert vector is not None
        assert vector @ point.vector == pytest.approx(np.linalg.norm(point.vector), rel=1e-5)
    assert collection.count() == 260
    tagged = [all_of(match_any("tags", [tag])) for tag in ("old", "new", "5")]
    assert [collection.count(filter=wanted) for wanted in tagged] == [1, 258, 1]


def test_a_bad_payload_prevents_all_overwrites(engine: Engine) -> None:
    collection = engine.open()
    points = make_points(2)
    collection.upsert(points)
    bad: list[dict[str, Any]] = [
        {points[0].id: {"n": 7}, points[1].id: {"n": float("nan")}},
        {points[0].id: {"n": 7}, "cat.png": {}},
    ]
    for payloads in bad:
        with pytest.raises(InvalidSearch):
            collection.overwrite_payloads(payloads)
    assert collection.retrieve([points[0].id])[points[0].id].payload == points[0].payload


def test_a_payload_may_be_nested_up_to_the_limit(engine: Engine) -> None:
    collection = engine.open()
    point = make_points(1)[0]

    def nested(levels: int, kind: str) -> dict[str, Any]:
        value: Any = "deep"
        for _ in range(levels - 1):
            value = [value] if kind == "list" else {"a": value}
        return {"top": value}

    for kind in ("list", "object"):
        deep, deeper = nested(MAX_LEVELS, kind), nested(MAX_LEVELS + 1, kind)
        collection.upsert([replace(point, payload=deep)])
        collection.overwrite_payloads({point.id: deep})
        for write in (
            partial(collection.upsert, [replace(point, payload=deeper)]),
            partial(collection.overwrite_payloads, {point.id: deeper}),
        ):
            with pytest.raises(InvalidSearch, match="nested 21 levels deep, more than 20"):
                write()
        assert collection.query(point.vector, 1)[0].payload == deep


def test_retrieve_returns_existing_points_under_the_ids_as_given(engine: Engine) -> None:
    collection = engine.open()
    payload: dict[str, Any] = {
        "title": "кіт",
        "tags": ["a", "b"],
        "size": {"w": 2, "x": 0.5},
        "none": None,
    }
    payload |= {"a.b": [[], {}], "": True, "ключ": -(2**63)}
    points = [replace(p, payload={**payload, **p.payload}) for p in make_points(260)]
    collection.upsert(points)
    shouted = points[2].id.upper()

    found = collection.retrieve([points[0].id, point_id("missing"), shouted])

    assert found.keys() == {points[0].id, shouted}
    assert found[points[0].id].payload == points[0].payload
    assert found[shouted].id == points[2].id
    assert found[shouted].payload == points[2].payload
    assert len(collection.retrieve([p.id for p in points])) == 260
    assert collection.retrieve([]) == {}


def test_delete_returns_the_number_of_points_that_existed(engine: Engine) -> None:
    collection = engine.open()
    points = make_points(260)
    collection.upsert(points)
    ids = [p.id for p in points]

    assert collection.delete([ids[0], ids[0].upper(), ids[1], point_id("missing")]) == 2
    assert collection.delete(ids[:3]) == 1
    assert collection.delete([]) == 0
    assert collection.count() == 257
    assert collection.delete(ids) == 257
    assert collection.query(points[0].vector, 5) == []


def test_a_bad_point_prevents_writing_its_batch(engine: Engine) -> None:
    collection = engine.open()
    bad: list[tuple[dict[str, Any], str]] = [
        ({"vector": np.ones(DIM - 1, np.float32)}, "(16,)"),
        ({"vector": np.ones((1, DIM), np.float32)}, "(16,)"),
        ({"vector": np.full(DIM, np.nan, np.float32)}, "NaN"),
        ({"vector": np.full(DIM, -np.inf, np.float32)}, "infinity"),
        ({"vector": np.zeros(DIM, np.float32)}, "zeros"),
        ({"vector": ["a"] * DIM}, "numbers"),
        ({"id": "cat.png"}, "cat.png"),
        ({"id": 7}, "UUID"),
        ({"payload": {"at": Path("x")}}, "JSON"),
        ({"payload": {"at": float("nan")}}, "JSON"),
        ({"payload": {"at": "\ud800"}}, "JSON"),
        ({"payload": {"at": 2**63}}, "64 bits"),
    ]
    points = make_points(260)
    for change, said in bad:
        with pytest.raises(InvalidSearch) as caught:
            collection.upsert([*points[:-1], replace(points[-1], **change)])
        assert said in str(caught.value)
        assert collection.count() == 0, change
