"""A server on the loopback with given responses, which may be slow or missing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Wire:
    """Gives the n-th response to the n-th request, and the last response to all later requests.

    A response is its bytes, or a list of bytes that are sent 0.1 s apart. `None` closes the
    connection without a response.
    """

    responses: Sequence[bytes | list[bytes] | None]
    port: int = 0
    requests: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def answer(status: int, body: Any, *headers: str, media_type: str = "application/json") -> bytes:
    """Return an HTTP response. Its body is text, bytes, or anything else as JSON."""
    content = body if isinstance(body, bytes) else _text(body).encode()
    lines = [
        f"HTTP/1.1 {status} X",
        f"Content-Type: {media_type}",
        f"Content-Length: {len(content)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def _text(body: Any) -> str:
    return body if isinstance(body, str) else json.dumps(body)


@contextmanager
def wire(*responses: bytes | list[bytes] | None) -> Iterator[Wire]:
    """Serve these responses until the block ends."""
    served = Wire(responses)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served.port = listener.getsockname()[1]
        thread = threading.Thread(target=_accept, args=(listener, served), daemon=True)
        thread.start()
        yield served
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def _accept(listener: socket.socket, served: Wire) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            connection.settimeout(5)
            served.requests.append(_request(connection))
            response = served.responses[min(len(served.requests), len(served.responses)) - 1]
            if response is None:
                continue
            for part in response if isinstance(response, list) else [response]:
                connection.sendall(part)
                if isinstance(response, list):
                    time.sleep(0.1)


def _request(connection: socket.socket) -> bytes:
    """Return a complete request."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or b"\r\n\r\n"
    head, _, body = data.partition(b"\r\n\r\n")
    lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(lines.get(b"content-length", 0)):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
