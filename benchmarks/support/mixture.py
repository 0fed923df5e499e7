"""The traffic of the soak: requests, and clients that vanish or stay silent."""

from __future__ import annotations

import random
import socket
import time
from typing import Final

from benchmarks.support.inputs import TEXTS, UKRAINIAN, photos
from loadtests.traffic.bodies import Prepared, base64_of, posted, upload

_IDS: Final = 100  # each is indexed several times, with different pictures
_BAD: Final = (400, 415)


def mixture() -> list[Prepared]:
    """Return texts, pictures, searches, indexing, deleting and bad input in random order."""
    files = photos(16)
    pictures = [base64_of(data) for data in files]
    requests = [posted("/embed/text", {"text": text}) for text in TEXTS + UKRAINIAN]
    requests += [upload("/embed/image/upload", "file", [data]) for data in files]
    requests += [upload("/embed/images", "files", [data]) for data in files]
    for n in range(4 * _IDS):
        body = {"id": str(n % _IDS), "image_base64": pictures[(n + n // 100) % 16]}
        requests += [
            posted("/images", body),
            posted("/search", {"text": f"a picture {n % 7}", "top_k": 10}),
            posted("/search", {"image": {"image_base64": pictures[n % 16]}}),
            Prepared(f"/images/{n % 10}", "application/json", b"", method="DELETE"),
            posted("/embed/image", {"image_base64": pictures[0][:400]}, statuses=_BAD),
            posted("/embed/text", {"text": ""}, statuses=_BAD),
            posted("/embed/text", {"text": f"number {n} " * 20}),
        ]
    random.Random(0).shuffle(requests)
    return requests


def vanish(port: int) -> None:
    """Connect four clients every second, forever. None waits for an answer.

    One breaks off its upload, one leaves after its upload, one sends nothing, and one half a line.
    """
    sent = upload("/embed/image/upload", "file", photos(1)).encoded()
    while True:
        clients = []
        for part in (sent[: len(sent) // 2], sent, b"", b"POST /embed"):
            clients.append(socket.create_connection(("127.0.0.1", port)))
            clients[-1].sendall(part)
        time.sleep(1)
        for client in clients:
            client.close()
