"""The store on a server that is down or hangs, with real timeouts."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from qdrant_client import QdrantClient

from bento.contract.errors import StoreUnavailable
from rag.store.opening import open_store
from rag.store.server.calls import ATTEMPTS
from rag.store.server.store import ServerStore
from tests.support.rag.engines import CLIP, closed_port, make_points, settings
from tests.support.rag.loopback import Fault, Loopback

pytestmark = pytest.mark.service


def test_a_call_without_an_answer_is_retried(loopback: Loopback) -> None:
    with closing(loopback.impatient(lambda _: None)) as store:
        collection = store.open("a", CLIP)
        loopback.calls.clear()
        loopback.faults = [Fault("Upsert", None, applied=True)]
        collection.upsert(make_points(3))
        assert loopback.calls == ["Upsert", "Upsert"]
        assert collection.count() == 3


def test_a_closed_port_is_an_error_within_seconds() -> None:
    port = closed_port()
    started = time.monotonic()
    with closing(
        open_store(settings(qdrant_host="127.0.0.1", qdrant_port=port, qdrant_grpc_port=port))
    ) as store:
        calls: list[Callable[[], object]] = [
            lambda: store.open("a", CLIP),
            lambda: store.published("a"),
        ]
        for call in calls:
            with pytest.raises(StoreUnavailable, match=rf"127\.0\.0\.1:{port}.*QDRANT_HOST"):
                call()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("prefer_grpc", [True, False])
def test_calls_to_a_server_that_never_answers_time_out(prefer_grpc: bool) -> None:
    slept: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, but never answers
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
            pytest.raises(StoreUnavailable),
        ):
            store.open("a", CLIP)
        assert time.monotonic() - started < ATTEMPTS + 2
        assert len(slept) == ATTEMPTS - 1


def test_the_store_works_again_after_an_outage(loopback: Loopback) -> None:
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
