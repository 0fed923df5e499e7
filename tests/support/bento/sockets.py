"""Write HTTP requests to a socket, so that the body can be late or missing."""

from __future__ import annotations

import socket

from tests.support.serving import Server


def send(server: Server, head: str, body: bytes = b"", seconds: float = 20) -> socket.socket:
    """Send the head of a request and the first bytes of its body."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=seconds)
    connection.sendall(f"{head}\r\nHost: localhost\r\n\r\n".encode() + body)
    return connection


def status_of(connection: socket.socket) -> int:
    answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])
