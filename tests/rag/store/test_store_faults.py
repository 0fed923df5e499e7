"""The store on a failing server: which calls are retried, and when they give up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import grpc  # type: ignore[import-untyped]
import pytest

from bento.contract.errors import StoreUnavailable
from rag.store.interface import Collection
from rag.store.server.calls import ATTEMPTS, TIMEOUT_S
from rag.store.server.store import ServerStore
from tests.support.rag.engines import CLIP, OTHER, make_points, point_id
from tests.support.rag.loopback import Fault, Loopback

pytestmark = pytest.mark.service  # for qdrant-client, whose import takes a second

TRANSIENT = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
POINTS = make_points(5)
IDS = [p.id for p in POINTS]


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


@pytest.fixture
def store(loopback: Loopback, slept: list[float], now: list[float]) -> Iterator[ServerStore]:
    with closing(loopback.impatient(slept.append, lambda: now[0])) as store:
        yield store


@pytest.fixture
def collection(store: ServerStore, loopback: Loopback) -> Collection:
    collection = store.open("a", CLIP)
    collection.upsert(POINTS)
    loopback.calls.clear()
    return collection


CALLS: dict[str, Callable[[Collection], object]] = {
    "Upsert": lambda c: c.upsert(POINTS),
    "UpdateBatch": lambda c: c.overwrite_payloads({IDS[0]: {"n": 7}}),
    "Get": lambda c: c.retrieve(IDS).keys() - set(IDS),
    "Delete": lambda c: c.delete([*IDS[:2], point_id("missing")]),
    "Query": lambda c: len(c.query(POINTS[0].vector, 3)),
    "Scroll": lambda c: len(c.scroll()[0]),
    "Count": lambda c: c.count(),
}


ANSWERS: dict[str, object] = {
    "Upsert": None,
    "UpdateBatch": 1,
    "Get": set(),
    "Delete": 2,
    "Query": 3,
    "Scroll": 5,
    "Count": 5,
}


@pytest.mark.parametrize(
    ("method", "code"),
    [*((method, TRANSIENT[0]) for method in CALLS), *(("Count", code) for code in TRANSIENT[1:])],
)
def test_transient_failures_are_retried(
    loopback: Loopback,
    collection: Collection,
    slept: list[float],
    method: str,
    code: grpc.StatusCode,
) -> None:
    loopback.faults = [Fault(method, code), Fault(method, code)]
    answer = CALLS[method](collection)
    assert answer == ANSWERS[method]
    assert loopback.calls.count(method) >= 3
    assert slept == [0.25, 0.5]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_a_write_with_a_lost_answer_takes_effect_once(
    loopback: Loopback, collection: Collection, code: grpc.StatusCode
) -> None:
    loopback.faults = [Fault(m, code, applied=True) for m in ("Upsert", "UpdateBatch", "Delete")]

    collection.upsert([*make_points(3, 1), *POINTS])
    assert collection.overwrite_payloads({IDS[0]: {"n": 7}, point_id("missing"): {}}) == 1
    assert collection.delete([*IDS[1:3], point_id("missing")]) == 2

    assert loopback.faults == []
    assert collection.count() == 6
    assert collection.retrieve(IDS[:2])[IDS[0]].payload == {"n": 7}


def test_creating_publishing_and_dropping_survive_lost_answers(
    loopback: Loopback, store: ServerStore
) -> None:
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    methods = ("Create", "CreateFieldIndex", "UpdateAliases")
    loopback.faults = [Fault(method, code, applied=True) for method in methods]
    store.open("a", CLIP).upsert(POINTS)
    assert loopback.faults == []

    store.open("a", OTHER, staged=True)
    loopback.faults = [Fault(method, code, applied=True) for method in ("UpdateAliases", "Delete")]
    store.publish("a", OTHER)
    assert store.drop("a", CLIP.generation) is True
    assert loopback.faults == []
    assert [c.identity for c in store.generations("a")] == [OTHER]


def test_a_busy_server_sets_the_pause_up_to_3_seconds(
    loopback: Loopback, collection: Collection, slept: list[float]
) -> None:
    busy = grpc.StatusCode.RESOURCE_EXHAUSTED
    loopback.faults = [Fault("Upsert", busy, retry_after=s) for s in (2, 7)]
    collection.upsert(POINTS)
    assert slept == [2, 3]

    loopback.faults = [Fault("Upsert", busy, retry_after=7) for _ in range(3)]
    with pytest.raises(StoreUnavailable, match="busy: try again in 7 s"):
        collection.upsert(POINTS)
    assert loopback.faults == []


@pytest.mark.parametrize("code", TRANSIENT)
def test_a_failing_call_ends_within_20_seconds(
    loopback: Loopback, collection: Collection, slept: list[float], code: grpc.StatusCode
) -> None:
    loopback.faults = [Fault("Count", code, retry_after=60) for _ in range(9)]
    with pytest.raises(StoreUnavailable, match="Qdrant at 127"):
        collection.count()
    assert loopback.calls == ["Count"] * ATTEMPTS
    waited = ATTEMPTS * TIMEOUT_S if code == grpc.StatusCode.DEADLINE_EXCEEDED else 0
    assert waited + sum(slept) < 20


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "answered INVALID_ARGUMENT"),
        (grpc.StatusCode.UNAUTHENTICATED, "QDRANT_API_KEY"),
        (grpc.StatusCode.PERMISSION_DENIED, "QDRANT_API_KEY"),
        (grpc.StatusCode.INTERNAL, "answered INTERNAL"),
        (grpc.StatusCode.NOT_FOUND, "answered NOT_FOUND"),  # but not a missing collection
    ],
)
def test_lasting_failures_are_not_retried(
    loopback: Loopback,
    collection: Collection,
    slept: list[float],
    code: grpc.StatusCode,
    said: str,
) -> None:
    loopback.faults = [Fault("Count", code)]
    with pytest.raises(StoreUnavailable, match=said):
        collection.count()
    assert loopback.calls == ["Count"]
    assert slept == []


def test_a_missing_collection_is_not_retried(
    loopback: Loopback, store: ServerStore, slept: list[float]
) -> None:
    assert store.published("a") is None
    assert loopback.calls == ["Get"]
    assert slept == []


def test_a_store_closed_during_a_retry_reports_it(loopback: Loopback) -> None:
    store: ServerStore
    store = loopback.impatient(lambda _: store.close())
    collection = store.open("a", CLIP)
    loopback.faults = [Fault("Count", grpc.StatusCode.UNAVAILABLE)]
    with pytest.raises(StoreUnavailable, match="is closed"):
        collection.count()


def test_the_circuit_breaker_opens_after_an_unanswered_call(
    loopback: Loopback, collection: Collection, now: list[float]
) -> None:
    unanswered, busy = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED
    loopback.faults = [Fault("Count", unanswered) for _ in range(ATTEMPTS)]
    for _ in range(5):
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            collection.count()
    assert loopback.calls == ["Count"] * ATTEMPTS
    now[0] += 1.1
    assert collection.count() == 5
    loopback.faults = [Fault("Count", busy, retry_after=1) for _ in range(ATTEMPTS)]
    with pytest.raises(StoreUnavailable, match="busy"):
        collection.count()
    assert collection.count() == 5  # a busy server does not open it
