"""Slow and too many clients, at an application of the test's own behind the real server."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from bento import Settings
from bento.runners.admission import ByteBudget
from bento.web import connections
from bento.web.access import Access
from bento.web.connections import Connection
from bento.web.metrics import Metrics
from bento.web.middleware import RequestMiddleware
from tests.support.serving import free_port

HEADERS, BODY, REQUEST = 0.6, 0.5, 1.5  # seconds that each may take here
LATE = 5.0  # nothing takes that long unless it is broken


async def echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def slow(request: Request) -> Response:
    await asyncio.sleep(float(request.query_params["seconds"]))
    return PlainTextResponse("done")


class Served:
    """A server in a thread of this process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.budget = ByteBudget(1000, lambda: None)
        self.metrics = Metrics(workers=1)
        routes = [
            Route("/echo", echo, methods=["POST"]),
            Route("/slow", slow),
            Route("/livez", slow),
        ]
        app = RequestMiddleware(
            Starlette(routes=routes),
            access=Access(Settings()),
            max_body_bytes=500,
            max_requests=3,
            budget=self.budget,
            metrics=self.metrics,
            seconds=REQUEST,
            body_seconds=BODY,
        )
        config = uvicorn.Config(app, port=self.port, http=Connection, log_config=None)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    def get(self, path: str, seconds: float) -> httpx.Response:
        url = f"http://127.0.0.1:{self.port}{path}"
        return httpx.get(url, params={"seconds": str(seconds)}, timeout=LATE)

    def connect(self, begin: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=LATE)
        connection.sendall(begin)
        return connection


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(connections, "HEADER_SECONDS", HEADERS)
    served = Served()
    served.thread.start()
    while not served.server.started:
        assert served.thread.is_alive()
        time.sleep(0.01)
    yield served
    served.server.should_exit = True
    served.thread.join()


def drip(connection: socket.socket, drop: bytes) -> bytes:
    """Send a drop now and then until the server answers or closes; return what it said."""
    connection.settimeout(0.05)
    deadline = time.monotonic() + LATE
    while time.monotonic() < deadline:
        try:
            return connection.recv(10_000)
        except TimeoutError:
            connection.sendall(drop)
        except ConnectionResetError:
            return b""
    raise AssertionError("it was waited for all the time")


def test_a_body_in_drips_is_408_and_the_connection_is_closed(served: Served) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 400\r\n\r\n"
    with served.connect(head) as connection:
        began = time.monotonic()
        said = drip(connection, b"x")
        assert BODY <= time.monotonic() - began < LATE
        start, _, body = said.partition(b"\r\n\r\n")
        assert start.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in start.lower()
        assert json.loads(body) == {
            "error": "the request body did not come within 0.5 s: send less at once",
            "code": "too_slow",
        }
        connection.settimeout(LATE)
        assert connection.recv(1) == b""
    assert served.budget.held == 0


def test_a_body_that_comes_in_time_is_read_however_it_is_cut(served: Served) -> None:
    with served.connect(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n") as slow:
        for _ in range(4):
            time.sleep(BODY / 10)
            slow.sendall(b"x")
        assert slow.recv(10_000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("begin", [b"", b"GET /slow HTTP/1.1\r\nHost: x\r\n"])
def test_a_first_request_that_does_not_come_is_not_waited_for(served: Served, begin: bytes) -> None:
    with served.connect(begin) as connection:
        assert drip(connection, b"X-More: 1\r\n" if begin else b"") == b""


def test_a_later_request_in_drips_is_not_waited_for_either(served: Served) -> None:
    ask = b"GET /slow?seconds=0 HTTP/1.1\r\nHost: x\r\n"
    with served.connect(ask + b"\r\n") as connection:
        assert b"200 OK" in connection.recv(10_000)
        connection.sendall(ask)
        assert drip(connection, b"X-More: 1\r\n") == b""


def test_a_request_that_is_worked_on_is_not_cut_off(served: Served) -> None:
    assert served.get("/slow", 2 * HEADERS).text == "done"
    ask = f"GET /slow?seconds={2 * HEADERS} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with served.connect(ask + ask) as connection:  # the second comes before the first is answered
        answers = b""
        while answers.count(b"done") < 2:
            part = connection.recv(10_000)
            assert part, answers
            answers += part


def test_a_request_that_takes_too_long_is_504_in_our_shape(served: Served) -> None:
    late = served.get("/slow", 60)
    assert late.status_code == 504
    assert late.json() == {
        "error": "not answered within 1.5 s: ask for less at once",
        "code": "timeout",
    }


def test_more_requests_than_allowed_at_a_time_are_429_but_for_probes(served: Served) -> None:
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(served.get, "/slow", 1.0) for _ in range(8)]
        answers = [one.result() for one in asked]
        assert sorted(a.status_code for a in answers) == [200] * 3 + [429] * 5
        for busy in answers:
            if busy.status_code == 429:
                assert busy.json()["code"] == "busy"
                assert "3 requests are being worked on" in busy.json()["error"]
                assert busy.headers["Retry-After"] == "1"
        probes = [threads.submit(served.get, "/livez", 0.2) for _ in range(8)]
        assert {probe.result().status_code for probe in probes} == {200}
    assert b'rejected_total{limit="requests"} 5.0' in served.metrics.exposition()
    assert served.get("/slow", 0).status_code == 200  # and there is room again


def test_a_body_counts_as_it_comes_and_not_as_it_is_announced(served: Served) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    waiting = [served.connect(head % 490) for _ in range(2)]
    try:
        assert served.budget.held == 0
        with served.connect(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 501\r\n\r\n"
        ) as big:
            assert big.recv(10_000).startswith(b"HTTP/1.1 413 ")
        for connection in waiting:
            connection.sendall(b"x" * 490)
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200 ")
    finally:
        for connection in waiting:
            connection.close()
