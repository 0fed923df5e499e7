"""The blocking client's transport: it enforces deadlines, and otherwise behaves like httpx's."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpcore
import httpx
import pytest

from router_client import VisionEncoderClient, VisionEncoderTimeout
from router_client.client.deadlines import DeadlineStream, DeadlineTransport, thread
from tests.support.wire import answer, wire

LIMITS = httpx.Limits(max_connections=2, keepalive_expiry=0.1)
ANSWER = b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\nab"


@contextmanager
def sending(tls: ssl.SSLContext | None = None) -> Iterator[httpx.Client]:
    thread.deadline = time.monotonic() + 20
    transport = DeadlineTransport(LIMITS, tls or ssl.create_default_context())
    with httpx.Client(transport=transport) as client:
        yield client


@contextmanager
def listening(tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[int]]]:
    """Serve over persistent connections. Yield the port and the connection of each request."""
    answered: list[int] = []

    def serve(connection: socket.socket, number: int) -> None:
        with suppress(OSError), connection:
            if tls:
                connection = tls.wrap_socket(connection, server_side=True)
            with connection:
                while connection.recv(65536):
                    answered.append(number)
                    connection.sendall(ANSWER)

    def accept() -> None:
        with suppress(OSError):
            for number in range(100):
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection, number), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], answered
        listener.shutdown(socket.SHUT_RDWR)


def test_an_answer_has_its_status_headers_and_body() -> None:
    whole = answer(418, {"a": 1}, "X-Name: one", "X-Name: two")
    with wire(whole) as told, sending() as client:
        response = client.post(f"{told.url}/a%20b?c=%C3%A9", content=b"body", headers={"X-Me": "1"})
    assert (response.status_code, response.json()) == (418, {"a": 1})
    assert response.headers.get_list("X-Name") == ["one", "two"]
    assert response.extensions["http_version"] == b"HTTP/1.1"
    head, _, body = told.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /a%20b?c=%C3%A9 HTTP/1.1\r\n")
    assert b"X-Me: 1" in head
    assert body == b"body"


def test_an_answer_is_streamed() -> None:
    head = b"HTTP/1.1 200 X\r\nContent-Length: 20\r\n\r\n"
    with (
        wire([head + b"x", *[b"x"] * 19]) as told,  # takes about 2 s
        sending() as client,
        client.stream("GET", told.url) as response,
    ):
        started = time.monotonic()
        assert next(response.iter_raw()) == b"x"
        assert time.monotonic() - started < 1


def test_connections_are_reused_until_they_expire() -> None:
    with listening() as (port, answered), sending() as client:
        for pause in (0, 0.15, 0):
            assert client.get(f"http://127.0.0.1:{port}").content == b"ab"
            time.sleep(pause)
    assert answered == [0, 0, 1]


@pytest.mark.service
@pytest.mark.skipif(not shutil.which("openssl"), reason="the command openssl is not installed")
def test_certificates_are_verified(tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=test"
    address = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    command = ["openssl", "req", *options.split(), *address]
    subprocess.run(command, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    with listening(server) as (port, answered):
        with sending(ssl.create_default_context(cafile=certificate)) as client:
            assert client.get(f"https://127.0.0.1:{port}").content == b"ab"
        with sending() as client, pytest.raises(httpx.ConnectError, match="CERTIFICATE"):
            client.get(f"https://127.0.0.1:{port}")
    assert answered == [0]


@pytest.mark.parametrize(
    "name",
    [
        *("ConnectError", "ConnectTimeout", "LocalProtocolError", "PoolTimeout", "ReadError"),
        *("ReadTimeout", "RemoteProtocolError", "UnsupportedProtocol", "WriteError"),
        "WriteTimeout",
    ],
)
def test_connection_errors_become_those_of_httpx(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object, **__: object) -> httpcore.NetworkStream:
        raise getattr(httpcore, name)("what was wrong")

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", fail)
    with sending() as client, pytest.raises(getattr(httpx, name), match="what was wrong"):
        client.get("http://127.0.0.1:1")


def test_errors_while_reading_become_those_of_httpx() -> None:
    with wire(answer(200, "some text")[:-3]) as told, sending() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(told.url)
        thread.deadline = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            client.get(told.url)


def test_a_slow_upload_ends_at_the_deadline() -> None:
    def read() -> None:
        connection, _ = listener.accept()
        with suppress(OSError), connection:
            while connection.recv(2000):
                time.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=read, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with VisionEncoderClient(url, timeout=0.3, max_retries=0) as client:
            started = time.monotonic()
            with pytest.raises(VisionEncoderTimeout):
                client.embed_image_bytes(b"x" * 50_000_000)  # would take about 4 min
            assert time.monotonic() - started < 8


def test_each_read_and_write_is_limited_to_the_time_that_is_left() -> None:
    class Stream(httpcore.NetworkStream):
        def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            assert timeout is not None
            bounds.append(timeout)
            return b"x"

        def write(self, buffer: bytes, timeout: float | None = None) -> None:
            self.read(len(buffer), timeout)

    bounds: list[float] = []
    stream = DeadlineStream(Stream())
    thread.deadline = time.monotonic() + 1000
    stream.write(b"x" * 200_000, 5000)
    stream.read(1, 5000)
    assert len(bounds) == 5  # 4 chunks and the read
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] < 1001
    stream.read(1, 5)
    assert bounds[-1] == 5
    thread.deadline = time.monotonic()
    for late in (lambda: stream.read(1, 5000), lambda: stream.write(b"x", 5000)):
        with pytest.raises(httpcore.TimeoutException):
            late()
