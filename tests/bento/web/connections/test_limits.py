"""What a connection may cost before its request is checked."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from bento.web.connections.connection import MAX_HEADER_BYTES, MAX_PIPELINED, Connection
from tests.support.serving import free_port

pytestmark = pytest.mark.service

SECONDS = 10.0
GET = b"GET /ok HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


class Limited(Connection):
    """Connections with low limits."""

    unread_seconds = 0.2
    max_connections = 4


class Served:
    """A server in a thread of this process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.under_way = 0
        self.ended = threading.Event()
        routes = [
            Route("/ok", self._ok),
            Route("/echo", self._echo, methods=["POST"]),
            Route("/large", self._large),
        ]
        app = Starlette(routes=routes)
        config = uvicorn.Config(app, port=self.port, http=Limited, log_config=None)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    async def _ok(self, _: Request) -> Response:
        return PlainTextResponse("ok")

    async def _echo(self, request: Request) -> Response:
        self.under_way += 1
        try:
            return PlainTextResponse(str(len(await request.body())))
        except ClientDisconnect:
            return PlainTextResponse("nobody")
        finally:
            self.under_way -= 1

    async def _large(self, _: Request) -> Response:
        return Response(b"x" * 20_000_000)

    def connect(self, begin: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)
        connection.sendall(begin)
        return connection

    def ask(self, request: bytes) -> bytes:
        with self.connect() as connection:
            return answer_to(connection, request)


def answer_to(connection: socket.socket, request: bytes) -> bytes:
    """Send a request, and return the answer, or nothing if the connection is cut first."""
    sender = threading.Thread(target=_send, args=(connection, request))
    sender.start()
    try:
        return connection.recv(10_000)
    except ConnectionResetError:
        return b""
    finally:
        sender.join()


def _send(connection: socket.socket, request: bytes) -> None:
    with suppress(OSError):  # the server may close the connection before everything is sent
        connection.sendall(request)


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    served.thread.start()
    while not served.server.started:
        assert served.thread.is_alive()
    yield served
    served.server.should_exit = True
    served.thread.join()


def test_headers_up_to_the_limit_are_read(served: Served) -> None:
    assert served.ask(GET + b"X-Long: " + b"x" * 60_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "request_bytes",
    [
        GET + b"X-Long: " + b"x" * MAX_HEADER_BYTES + b"\r\n\r\n",
        GET + b"X-Endless: " + b"x" * 2_000_000,
        GET + b"X-Many: 1\r\n" * 100_000,
        b"GET /" + b"x" * 2_000_000,
        CHUNKED + b"1;extension=" + b"x" * 2_000_000,
        CHUNKED + b"1\r\na\r\n0\r\n" + b"X-Trailer: 1\r\n" * 100_000,
    ],
    ids=["long", "endless", "many", "url", "extension", "trailers"],
)
def test_longer_headers_are_431_and_the_connection_is_closed(
    served: Served, request_bytes: bytes
) -> None:
    answer = served.ask(request_bytes)
    if answer:  # closing a connection with unread input can discard the answer
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431")
        assert b"connection: close" in head
        assert b"x-content-type-options: nosniff" in head
        assert json.loads(body)["code"] == "too_large"
        assert "more than 65,536 bytes" in json.loads(body)["error"]


def test_the_answer_to_long_headers_arrives_if_the_client_stops_sending(served: Served) -> None:
    start = GET + b"X-Endless: "
    answer = served.ask(start + b"x" * (MAX_HEADER_BYTES + 1 - len(start)))
    assert answer.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("size", [1, 100_000])
def test_bodies_do_not_count_as_headers(served: Served, size: int) -> None:
    chunk = b"%x\r\n%b\r\n" % (size, b"a" * size)
    count = 300_000 // len(chunk)
    answer = served.ask(CHUNKED + chunk * count + b"0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n%d" % (size * count))
    length = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n"
    with served.connect() as connection:
        for _ in range(3):
            assert answer_to(connection, length + b"a" * 300_000).endswith(b"\r\n\r\n300000")


def test_what_is_not_http_is_400_in_the_usual_shape(served: Served) -> None:
    head, _, body = served.ask(b"what is this\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body) == {
        "error": "the request is not valid HTTP",
        "code": "invalid_request",
    }


def test_few_requests_may_be_sent_before_their_answers(served: Served) -> None:
    def answers(count: int) -> int:
        with served.connect(CHUNKED) as connection:  # its answer waits for the end of its body
            wait_for(served, 1)
            rest = b"0\r\n\r\n" + (GET + b"\r\n") * count
            answer, received = answer_to(connection, rest), b""
            while answer:
                received += answer
                connection.settimeout(0.2)
                try:
                    answer = connection.recv(100_000)
                except (TimeoutError, ConnectionResetError):
                    break
            return received.count(b"HTTP/1.1 200")

    assert answers(MAX_PIPELINED) == MAX_PIPELINED + 1
    assert answers(1000) < 1000


def wait_for(served: Served, under_way: int) -> None:
    while served.under_way != under_way:
        assert served.thread.is_alive()


def test_a_new_connection_takes_the_place_of_the_one_idle_longest(served: Served) -> None:
    with ExitStack() as stack:
        busy = stack.enter_context(served.connect(CHUNKED))
        wait_for(served, 1)
        first = stack.enter_context(served.connect())
        second = stack.enter_context(served.connect(GET))  # its headers never end
        third = stack.enter_context(served.connect())
        assert answer_to(first, GET + b"\r\n").startswith(b"HTTP/1.1 200")  # idle from now on
        assert served.ask(GET + b"\r\n").startswith(b"HTTP/1.1 200")
        assert cut_off(second)
        assert answer_to(third, GET + b"\r\n").startswith(b"HTTP/1.1 200")
        assert answer_to(first, GET + b"\r\n").startswith(b"HTTP/1.1 200")
        assert answer_to(busy, b"0\r\n\r\n").startswith(b"HTTP/1.1 200")


def cut_off(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_connection_is_429_if_all_others_have_requests_under_way(served: Served) -> None:
    with ExitStack() as stack:
        busy = [stack.enter_context(served.connect(CHUNKED)) for _ in range(4)]
        wait_for(served, 4)
        with served.connect() as connection:
            head, _, body = connection.recv(10_000).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429")
        assert b"retry-after: 1" in head
        assert json.loads(body)["code"] == "busy"
        for connection in busy:
            assert answer_to(connection, b"0\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_read_is_cut_off(served: Served) -> None:
    connections = served.server.server_state.connections
    with served.connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        while not connections:
            assert served.thread.is_alive()
        while connections:
            assert served.thread.is_alive()
        received = 0
        with suppress(ConnectionResetError):
            while data := connection.recv(1_000_000):
                received += len(data)
        assert received < 20_000_000


def test_a_client_that_reads_slowly_gets_its_answer(served: Served) -> None:
    with served.connect(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        received = bytearray()
        while data := client.recv(200_000):
            received += data
            threading.Event().wait(0.005)
        assert len(received) > 20_000_000
