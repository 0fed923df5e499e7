"""Behavior that all engines share: collections and their versions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from bento.contract.errors import (
    CollectionMismatch,
    CollectionNotFound,
    InvalidSearch,
    RagError,
    StoreUnavailable,
)
from bento.contract.filters import tenant
from tests.support.rag.engines import CLIP, DIM, OTHER, make_points
from tests.support.rag.stores import Engine, by_wire

# Collections -------------------------------------------------------------------------------


def test_a_model_mismatch_names_both_models_and_the_remedy(engine: Engine) -> None:
    collection = engine.open()
    collection.upsert(make_points(1))
    for wanted in (OTHER, replace(CLIP, weights_digest="sha256:cccc")):
        with pytest.raises(CollectionMismatch) as caught:
            engine.store.open(engine.name, wanted)
        sentence = str(caught.value)
        for identity in (CLIP, wanted):
            assert f"{identity.model_name}/{identity.pretrained}" in sentence
            assert identity.weights_digest in sentence
        assert f"reindex --collection {engine.name}" in sentence
    assert engine.open().count() == 1


@pytest.mark.parametrize(
    "engine", ["embedded", *map(by_wire, ["local-files", "grpc", "server"])], indirect=True
)
def test_reopening_keeps_points_identities_and_what_is_published(engine: Engine) -> None:
    points = make_points(30, dao_id="ours")
    collection = engine.open()
    collection.upsert(points)
    collection.delete([points[0].id])
    collection.overwrite_payloads({points[5].id: {"dao_id": "ours", "title": "new"}})
    engine.store.open(engine.name, OTHER, staged=True).upsert(points[:3])

    store = engine.reopen()

    held = store.generations(engine.name)
    assert [(c.name, c.identity, c.count()) for c in held] == [
        (engine.name, CLIP, 29),
        (engine.name, OTHER, 3),
    ]
    with pytest.raises(CollectionMismatch):
        store.open(engine.name, OTHER)
    collection = store.open(engine.name, CLIP)
    assert collection.retrieve([points[5].id])[points[5].id].payload["title"] == "new"
    assert collection.query(points[5].vector, 1, filter=tenant("ours"))[0].id == points[5].id


def test_reading_a_missing_collection_does_not_create_it(engine: Engine) -> None:
    store, name = engine.store, engine.name
    assert store.published(name) is None
    assert list(store.generations(name)) == []
    assert store.drop(name, CLIP.generation) is False
    for call in (
        lambda: store.open(name, CLIP, create=False),
        lambda: store.open(name, CLIP, create=False, staged=True),
        lambda: store.publish(name, CLIP),
    ):
        with pytest.raises(CollectionNotFound, match=name):
            call()
    assert list(store.generations(name)) == []


def test_a_bad_collection_name_is_rejected(engine: Engine) -> None:
    store = engine.store
    for name in ("", ".", "..", "a/b", "../a", "a b", "a\n", "é", "a" * 65, "/a", "a--b"):
        for call in (
            lambda name=name: store.open(name, CLIP),
            lambda name=name: store.published(name),
            lambda name=name: store.generations(name),
            lambda name=name: store.publish(name, CLIP),
            lambda name=name: store.drop(name, CLIP.generation),
        ):
            with pytest.raises(InvalidSearch, match="the collection name"):
                call()


def test_collections_are_independent(engine: Engine) -> None:
    engine.open().upsert(make_points(3))
    other = f"{engine.name}-2"
    assert engine.store.published(other) is None
    assert engine.store.open(other, replace(OTHER, dimension=3)).count() == 0
    assert engine.open().count() == 3
    assert [c.identity for c in engine.store.generations(engine.name)] == [CLIP]


def test_concurrent_writes_and_queries_lose_nothing(engine: Engine) -> None:
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        start.wait()
        collection = engine.open()
        points = make_points(20, seed, dao_id=str(seed))
        for n in range(0, 20, 5):
            collection.upsert(points[n : n + 5])
            for point in points[n : n + 5]:
                found = collection.query(point.vector, 1, filter=tenant(str(seed)))
                assert found[0].id == point.id
        assert collection.delete([points[0].id]) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

    assert engine.open().count() == 4 * 19


def test_a_closed_store_rejects_calls_and_can_be_closed_again(engine: Engine) -> None:
    collection = engine.open()
    engine.store.close()
    engine.store.close()
    for call in (collection.count, engine.open):
        with pytest.raises(StoreUnavailable, match="is closed"):
            call()


# Versions ----------------------------------------------------------------------------------


def test_the_first_version_opened_is_published(engine: Engine) -> None:
    collection = engine.open()
    published = engine.store.published(engine.name)
    assert published is not None
    assert (published.name, published.identity) == (engine.name, CLIP)
    collection.upsert(make_points(3))
    assert published.count() == 3


def test_a_staged_version_is_filled_beside_the_published_one(engine: Engine) -> None:
    store, name = engine.store, engine.name
    engine.open().upsert(make_points(3))
    wide = replace(OTHER, dimension=DIM + 1)
    staged = store.open(name, wide, staged=True)
    assert staged.identity == wide

    staged.upsert([replace(p, vector=np.ones(DIM + 1, np.float32)) for p in make_points(5)])

    assert engine.open().count() == 3
    assert store.open(name, wide, staged=True, create=False).count() == 5
    published = store.published(name)
    assert published is not None
    assert published.identity == CLIP
    assert [(c.identity, c.count()) for c in store.generations(name)] == [(CLIP, 3), (wide, 5)]
    assert store.open(name, CLIP, staged=True).count() == 3  # names the published one


def test_the_old_version_stays_until_it_is_dropped(engine: Engine) -> None:
    store, name = engine.store, engine.name
    old = engine.open()
    old.upsert(make_points(3))
    new = store.open(name, OTHER, staged=True)
    new.upsert(make_points(5, 1))

    store.publish(name, OTHER)

    assert store.open(name, OTHER).count() == 5
    with pytest.raises(CollectionMismatch):
        engine.open()
    assert [c.identity for c in store.generations(name)] == [OTHER, CLIP]
    old.upsert(make_points(2, 2))  # a late write to the old version
    assert (old.count(), new.count()) == (5, 5)

    assert store.drop(name, CLIP.generation) is True
    assert store.drop(name, CLIP.generation) is False
    assert [c.identity for c in store.generations(name)] == [OTHER]
    assert new.count() == 5


def test_a_version_can_be_published_again(engine: Engine) -> None:
    store, name = engine.store, engine.name
    engine.open()
    store.open(name, OTHER, staged=True)
    for identity in (CLIP, OTHER, OTHER, CLIP):
        store.publish(name, identity)
        assert store.open(name, identity, create=False).identity == identity


def test_the_published_version_cannot_be_dropped(engine: Engine) -> None:
    engine.open().upsert(make_points(3))
    with pytest.raises(InvalidSearch, match="is published"):
        engine.store.drop(engine.name, CLIP.generation)
    for generation in ("", "..", "published", "0" * 8, "../" + CLIP.generation):
        assert engine.store.drop(engine.name, generation) is False
    assert engine.open().count() == 3


def test_calls_on_a_dropped_version_fail_with_a_remedy(engine: Engine) -> None:
    engine.open()
    held = engine.store.open(engine.name, OTHER, staged=True)
    point = make_points(1)[0]
    held.upsert([point])
    engine.store.drop(engine.name, OTHER.generation)

    calls: list[Callable[[], object]] = [
        lambda: held.upsert([point]),
        lambda: held.overwrite_payloads({point.id: {}}),
        lambda: held.retrieve([point.id]),
        lambda: held.delete([point.id]),
        lambda: held.query(point.vector, 1),
        held.scroll,
        held.count,
    ]
    for call in calls:
        with pytest.raises(RagError, match="open the collection again"):
            call()
    assert (
        engine.store.open(engine.name, OTHER, staged=True).count() == 0
    )  # it can be created again
    assert engine.open().count() == 0


def test_opening_a_collection_publishes_its_staged_version(engine: Engine) -> None:
    engine.store.open(engine.name, CLIP, staged=True).upsert(make_points(3))
    assert engine.store.published(engine.name) is None
    assert [c.identity for c in engine.store.generations(engine.name)] == [CLIP]
    with pytest.raises(CollectionNotFound):
        engine.store.open(engine.name, CLIP, create=False)

    assert engine.open().count() == 3

    assert engine.store.published(engine.name) is not None
