"""A server on the loopback that does to each connection what it is told: answer, drip, cut."""

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
    """Does the n-th thing to the n-th request, the last one to all that follow.

    A thing is the bytes of an answer; None: the connection is cut; a list of bytes: each comes
    0.1 s after the one before.
    """

    things: Sequence[bytes | list[bytes] | None]
    port: int = 0
    requests: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def answer(status: int, body: Any, *headers: str, media_type: str = "application/json") -> bytes:
    """Return an HTTP answer with a JSON body, or with this text or bytes."""
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
def wire(*things: bytes | list[bytes] | None) -> Iterator[Wire]:
    """Serve until the block ends."""
    told = Wire(things)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        told.port = listener.getsockname()[1]
        thread = threading.Thread(target=_accept, args=(listener, told), daemon=True)
        thread.start()
        yield told
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def _accept(listener: socket.socket, told: Wire) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            connection.settimeout(5)
            told.requests.append(_request(connection))
            thing = told.things[min(len(told.requests), len(told.things)) - 1]
            if thing is None:
                continue
            for part in thing if isinstance(thing, list) else [thing]:
                connection.sendall(part)
                if isinstance(thing, list):
                    time.sleep(0.1)


def _request(connection: socket.socket) -> bytes:
    """Read a request to its end."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or b"\r\n\r\n"
    head, _, body = data.partition(b"\r\n\r\n")
    lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(lines.get(b"content-length", 0)):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
