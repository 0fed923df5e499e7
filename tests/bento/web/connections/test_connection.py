"""Slow clients, too many clients, and proxies, with a small application behind the real server."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from bento import Settings
from bento.runners.admission import ByteBudget
from bento.web.access import Access
from bento.web.connections.connection import Connection
from bento.web.metrics import Metrics
from bento.web.middleware import RequestMiddleware
from tests.support.serving import free_port

pytestmark = pytest.mark.service

SHORT = 0.15  # seconds: the limit under test
LONG = 10.0  # seconds: all other limits


class Served:
    """A server in a thread of this process, with limits in seconds."""

    def __init__(
        self,
        *,
        header: float = LONG,
        body: float = LONG,
        request: float = LONG,
        keep_alive: Any = LONG,  # uvicorn declares whole seconds
        proxies: str = "",
        sockets: list[socket.socket] | None = None,
    ) -> None:
        self.port = sockets[0].getsockname()[1] if sockets else free_port()
        self.budget = ByteBudget(1000, lambda: None)
        self.metrics = Metrics(workers=1)
        self.held = 0  # requests to /hold
        self.released = threading.Event()
        routes = [
            Route("/echo", self._echo, methods=["POST"]),
            Route("/hold", self._hold),
            Route("/livez", self._hold),
            Route("/sleep", self._sleep),
            Route("/origin", self._origin),
        ]
        app = RequestMiddleware(
            Starlette(routes=routes),
            access=Access(Settings()),
            max_body_bytes=500,
            max_items=10,
            max_requests=3,
            budget=self.budget,
            metrics=self.metrics,
            seconds=request,
            body_seconds=body,
        )

        class Limited(Connection):
            header_seconds = header
            keep_alive_seconds = keep_alive

        config = uvicorn.Config(
            app, port=self.port, http=Limited, log_config=None, forwarded_allow_ips=proxies
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=(sockets,))

    async def _echo(self, request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def _hold(self, _: Request) -> Response:
        self.held += 1
        while not self.released.is_set():
            await asyncio.sleep(0.01)
        return PlainTextResponse("released")

    async def _sleep(self, request: Request) -> Response:
        await asyncio.sleep(float(request.query_params["seconds"]))
        return PlainTextResponse("done")

    async def _origin(self, request: Request) -> Response:
        assert request.client
        host = request.headers.get("X-Forwarded-Host")
        return JSONResponse([request.client.host, request.url.scheme, host])

    def get(self, path: str, **headers: str) -> httpx.Response:
        url = f"http://127.0.0.1:{self.port}{path}"
        return httpx.get(url, headers=headers, timeout=LONG, verify=False)

    def connect(self, begin: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=LONG)
        connection.sendall(begin)
        return connection


Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    started: list[Served] = []

    def start(**options: Any) -> Served:
        served = Served(**options)
        served.thread.start()
        started.append(served)
        while not served.server.started:
            assert served.thread.is_alive()
            time.sleep(0.005)
        return served

    yield start
    for served in started:
        served.server.should_exit = True
    for served in started:
        served.thread.join()


def drip(connection: socket.socket, drop: bytes) -> bytes:
    """Send drops until the server answers or closes the connection; return its answer."""
    connection.settimeout(0.02)
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        try:
            return connection.recv(10_000)
        except TimeoutError:
            connection.sendall(drop)
        except ConnectionResetError:
            return b""
    raise AssertionError("the server neither answered nor closed the connection")


def test_a_slow_body_is_408_and_the_connection_is_closed(serve: Serve) -> None:
    served = serve(body=SHORT)
    with served.connect(
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 400\r\n\r\n"
    ) as connection:
        began = time.monotonic()
        answer = drip(connection, b"x")
        assert time.monotonic() - began >= SHORT
        start, _, body = answer.partition(b"\r\n\r\n")
        assert start.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in start.lower()
        assert b'"too_slow"' in body
        assert b"did not arrive within 0.15 s" in body
        connection.settimeout(LONG)
        assert connection.recv(1) == b""
    assert served.budget.held == 0


def test_a_body_that_comes_in_pieces_is_read(serve: Serve) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
    with serve().connect(head) as connection:
        for _ in range(4):
            time.sleep(0.02)
            connection.sendall(b"x")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("begin", [b"", b"GET /sleep HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_without_a_request_is_closed(serve: Serve, begin: bytes) -> None:
    with serve(header=SHORT).connect(begin) as connection:
        assert drip(connection, b"X-More: 1\r\n" if begin else b"") == b""


def test_a_connection_with_slow_headers_is_closed(serve: Serve) -> None:
    head = b"GET /sleep?seconds=0 HTTP/1.1\r\nHost: x\r\n"
    with serve(header=SHORT).connect(head + b"\r\n") as connection:
        assert b"200 OK" in connection.recv(10_000)
        connection.sendall(head)
        assert drip(connection, b"X-More: 1\r\n") == b""


def test_a_connection_may_be_idle_for_longer_than_headers_may_take(serve: Serve) -> None:
    head = b"GET /sleep?seconds=0 HTTP/1.1\r\nHost: x\r\n\r\n"
    with serve(header=SHORT).connect(head) as connection:
        assert b"200 OK" in connection.recv(10_000)
        time.sleep(2 * SHORT)
        connection.sendall(head)
        assert b"200 OK" in connection.recv(10_000)


def test_a_connection_that_is_idle_for_too_long_is_closed(serve: Serve) -> None:
    head = b"GET /sleep?seconds=0 HTTP/1.1\r\nHost: x\r\n\r\n"
    with serve(keep_alive=SHORT).connect(head) as connection:
        assert b"200 OK" in connection.recv(10_000)
        connection.settimeout(10 * SHORT)  # uvicorn's default is 5 s
        assert connection.recv(1) == b""


def test_empty_lines_keep_no_connection_open(serve: Serve) -> None:
    head = b"GET /sleep?seconds=0 HTTP/1.1\r\nHost: x\r\n\r\n"
    with serve(header=SHORT).connect(head) as connection:
        assert b"200 OK" in connection.recv(10_000)
        assert drip(connection, b"\r\n") == b""


@pytest.mark.parametrize(
    ("proxies", "trusted"),
    [("", False), ("10.0.0.0/8", False), ("127.0.0.1", True), ("127.0.0.0/8", True), ("*", True)],
)
def test_forwarded_headers_count_only_from_trusted_addresses(
    serve: Serve, proxies: str, trusted: bool
) -> None:
    headers = {
        "X-Forwarded-For": "203.0.113.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "pictures.example",
        "Forwarded": "for=203.0.113.8;proto=https;host=other.example",  # never counts
    }
    seen = ["203.0.113.7", "https", "pictures.example"]
    found = serve(proxies=proxies).get("/origin", **headers).json()
    assert found == (seen if trusted else ["127.0.0.1", "http", None])


def test_an_ipv4_proxy_is_trusted_on_a_socket_for_both_protocols(serve: Serve) -> None:
    address = ("::ffff:127.0.0.1", 0)
    both = socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=True)
    served = serve(proxies="127.0.0.0/8", sockets=[both])
    assert served.get("/origin").json() == ["127.0.0.1", "http", None]
    headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Host": "pictures.example"}
    assert served.get("/origin", **headers).json() == ["203.0.113.7", "http", "pictures.example"]


def test_the_time_for_headers_does_not_limit_the_answer(serve: Serve) -> None:
    head = f"GET /sleep?seconds={1.5 * SHORT} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with serve(header=SHORT).connect(head + head) as connection:  # pipelined
        answers = b""
        while answers.count(b"done") < 2:
            part = connection.recv(10_000)
            assert part, answers
            answers += part


def test_a_request_that_takes_too_long_is_504(serve: Serve) -> None:
    late = serve(request=SHORT).get("/sleep?seconds=60")
    assert late.status_code == 504
    assert late.json() == {
        "error": "the service did not answer within 0.15 s: send fewer items at a time",
        "code": "timeout",
    }


def test_requests_beyond_the_bound_get_429_except_probes(serve: Serve) -> None:
    served = serve()
    with ThreadPoolExecutor(8) as threads:
        held = [threads.submit(served.get, "/hold") for _ in range(3)]
        while served.held < 3:
            time.sleep(0.005)
        for _ in range(5):
            busy = served.get("/hold")
            assert (busy.status_code, busy.json()["code"]) == (429, "busy")
            assert "is handling 3 requests" in busy.json()["error"]
            assert busy.headers["Retry-After"] == "1"
        probes = [threads.submit(served.get, "/livez") for _ in range(5)]
        while served.held < 8:
            time.sleep(0.005)
        served.released.set()
        assert {one.result().status_code for one in held + probes} == {200}
    assert b'rejected_total{limit="requests"} 5.0' in served.metrics.exposition()
    assert served.get("/hold").status_code == 200


def test_a_body_counts_as_it_comes_and_not_as_it_is_announced(serve: Serve) -> None:
    served = serve()
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    with served.connect(head % 490) as first, served.connect(head % 490) as second:
        assert served.budget.held == 0
        with served.connect(head % 501) as large:
            assert large.recv(10_000).startswith(b"HTTP/1.1 413 ")
        for connection in (first, second):
            connection.sendall(b"x" * 490)
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200 ")
