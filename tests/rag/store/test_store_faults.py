"""A server that fails: what is tried again, what is not, and when it ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import grpc
import pytest
from qdrant_client import QdrantClient
from rag.errors import StoreUnavailable

from rag.store.interface import Collection, open_store
from rag.store.server import calls as server_calls
from rag.store.server.calls import ATTEMPTS, TIMEOUT_S
from rag.store.server.store import ServerStore
from tests.support.rag.engines import CLIP, OTHER, closed_port, make_points, point_id, settings
from tests.support.rag.loopback import Fault, Loopback

PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
POINTS = make_points(5)
IDS = [p.id for p in POINTS]


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    loopback = Loopback()
    yield loopback
    loopback.stop()


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def store(loopback: Loopback, slept: list[float]) -> Iterator[ServerStore]:
    with closing(loopback.impatient(slept.append)) as store:
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


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("code", PASSING)
def test_what_fails_for_the_moment_is_tried_again(
    loopback: Loopback,
    collection: Collection,
    slept: list[float],
    method: str,
    code: grpc.StatusCode,
) -> None:
    loopback.faults = [Fault(method, code), Fault(method, code)]
    answer = CALLS[method](collection)
    assert answer == {"Get": set(), "UpdateBatch": 1, "Delete": 2, "Query": 3}.get(
        method, None if method == "Upsert" else 5
    )
    assert loopback.calls.count(method) >= 3
    assert slept == [0.25, 0.5]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_a_lost_answer_loses_and_doubles_nothing(
    loopback: Loopback, collection: Collection, code: grpc.StatusCode
) -> None:
    loopback.faults = [Fault(m, code, applied=True) for m in ("Upsert", "UpdateBatch", "Delete")]

    collection.upsert([*make_points(3, 1), *POINTS])
    assert collection.overwrite_payloads({IDS[0]: {"n": 7}, point_id("missing"): {}}) == 1
    assert collection.delete([*IDS[1:3], point_id("missing")]) == 2

    assert loopback.faults == []
    assert collection.count() == 6
    assert collection.retrieve(IDS[:2])[IDS[0]].payload == {"n": 7}


def test_lost_answers_of_creating_publishing_and_dropping_do_no_harm(
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


def test_a_busy_server_is_given_the_time_that_it_asks_for_up_to_3_seconds(
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


@pytest.mark.parametrize("code", PASSING)
def test_it_ends_within_20_seconds_whatever_the_server_does(
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
        (grpc.StatusCode.NOT_FOUND, "answered NOT_FOUND"),  # and not of a collection
    ],
)
def test_what_will_not_get_better_is_told_at_once(
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


def test_a_missing_collection_is_looked_for_once(
    loopback: Loopback, store: ServerStore, slept: list[float]
) -> None:
    assert store.published("a") is None
    assert loopback.calls == ["Get"]
    assert slept == []


def test_a_call_that_is_never_answered_is_made_again(
    loopback: Loopback, collection: Collection
) -> None:
    loopback.faults = [Fault("Upsert", None, applied=True)]
    collection.upsert(make_points(3, 1))
    assert loopback.calls == ["Upsert", "Upsert"]
    assert collection.count() == 8


def test_a_store_closed_while_a_call_waits_says_so(loopback: Loopback) -> None:
    store: ServerStore
    store = loopback.impatient(lambda _: store.close())
    collection = store.open("a", CLIP)
    loopback.faults = [Fault("Count", grpc.StatusCode.UNAVAILABLE)]
    with pytest.raises(StoreUnavailable, match="is closed"):
        collection.count()


def test_a_closed_port_is_an_error_within_seconds() -> None:
    port = closed_port()
    started = time.monotonic()
    with closing(
        open_store(settings(qdrant_host="127.0.0.1", qdrant_port=port, qdrant_grpc_port=port))
    ) as store:
        for call in (lambda: store.open("a", CLIP), lambda: store.published("a")):
            with pytest.raises(StoreUnavailable) as caught:
                call()
            assert f"127.0.0.1:{port}" in str(caught.value)
            assert "QDRANT_HOST" in str(caught.value)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("prefer_grpc", [True, False])
def test_a_server_that_never_answers_is_given_up_on(prefer_grpc: bool, slept: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and says nothing
        port = listener.getsockname()[1]
        client = QdrantClient(
            host="127.0.0.1",
            port=port,
            grpc_port=port,
            prefer_grpc=prefer_grpc,
            timeout=1,
            check_compatibility=False,
        )
        started = time.monotonic()
        with (
            closing(ServerStore(client, sleep=slept.append)) as store,
            pytest.raises(StoreUnavailable, match="Qdrant"),
        ):
            store.open("a", CLIP)
        assert time.monotonic() - started < ATTEMPTS + 2
        assert len(slept) == ATTEMPTS - 1


def test_who_comes_after_one_that_waited_in_vain_is_told_at_once(
    loopback: Loopback, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(server_calls.time, "monotonic", lambda: now[0])
    away, busy = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED
    loopback.faults = [Fault("Count", away) for _ in range(ATTEMPTS)]
    for _ in range(5):
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            collection.count()
    assert loopback.calls == ["Count"] * ATTEMPTS
    now[0] += 1.1
    assert collection.count() == 5
    loopback.faults = [Fault("Count", busy, retry_after=1) for _ in range(ATTEMPTS)]
    with pytest.raises(StoreUnavailable, match="busy"):
        collection.count()
    assert collection.count() == 5  # a server that is busy is not away


def test_it_comes_back_after_an_outage(loopback: Loopback) -> None:
    with closing(loopback.connect()) as store:
        store.open("a", CLIP)
        loopback.server.stop(None).wait()
        with pytest.raises(StoreUnavailable):
            store.open("a", CLIP)
        port = loopback.port
        loopback.start(port)
        assert loopback.port == port
        deadline = time.monotonic() + 5
        while True:
            try:
                assert store.open("a", CLIP).count() == 0
                break
            except StoreUnavailable:
                assert time.monotonic() < deadline
                time.sleep(0.1)
