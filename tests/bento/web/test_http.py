"""A served service with too many requests, slow uploads and vanished clients."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.bento.problems import problem
from tests.support.pictures import file_bytes
from tests.support.serving import Server, serving
from tests.support.wire import answer as answer_of
from tests.support.wire import wire

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Serve a picture of 900 kB and return its URL."""
    body = answer_of(200, noise(540), media_type="image/png")
    with wire(body) as served:
        yield served.url


@pytest.fixture(scope="module")
def tight(site: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a service with small limits."""
    folder = tmp_path_factory.mktemp("tight")
    with serving(
        folder,
        ALLOW_IMAGE_URLS="true",
        IMAGE_URL_ALLOWED_HOSTS="127.0.0.1",
        IMAGE_URL_ALLOWED_PORTS=site.rpartition(":")[2],
        QDRANT_ENABLED="false",
        MAX_QUEUE_MS="60",
        MAX_IMAGE_BYTES="1000000",
        MAX_REQUEST_BYTES="2000000",
        MAX_QUEUE_BYTES="4000000",
        MAX_REQUEST_ITEMS="5000",
    ) as server:
        yield server


def sample(server: Server, line: str) -> float:
    """Return the value of a metric; 0 if it is missing."""
    text = httpx.get(f"{server.url}/metrics").text
    values = [float(x.rpartition(" ")[2]) for x in text.splitlines() if x.startswith(line + " ")]
    return values[0] if values else 0.0


def until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gave_up_on(server: Server, requests: int) -> bool:
    return server.log.read_text().count('"status": 499') >= requests


def noise(side: int) -> bytes:
    return file_bytes(Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)))


def test_excess_requests_are_429_and_the_rest_is_answered(tight: Server) -> None:
    picture = noise(300)

    async def scene() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=tight.url, timeout=60, limits=limits) as http:
            return await asyncio.gather(
                *(http.post("/embed/image/upload", files={"file": picture}) for _ in range(150))
            )

    answers = asyncio.run(scene())
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["code"] == "busy"
            assert int(answer.headers["Retry-After"]) >= 1
    limits = ("queue", "late", "requests", "bytes")
    refused = [sample(tight, f'vision_encoder_rejected_total{{limit="{it}"}}') for it in limits]
    assert sum(refused) == statuses.count(429)
    # the next request is answered again
    assert httpx.post(f"{tight.url}/embed/image/upload", files={"file": picture}).is_success
    assert sample(tight, 'vision_encoder_queue_length{tower="image"}') == 0


def open_upload(server: Server, length: int, sent: int = 1) -> socket.socket:
    """Begin an upload of `length` bytes and send the first `sent` bytes."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    head = (
        "POST /embed/image HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    )
    connection.sendall(head.encode() + b'"' + b"a" * (sent - 1))
    return connection


def ask(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/embed/text", json={"text": "a"})


def test_a_client_that_leaves_during_its_upload_is_no_error_of_the_service(tight: Server) -> None:
    gone = 'vision_encoder_requests_total{code="",method="POST",route="/embed/image",status="499"}'
    open_upload(tight, 100).close()
    until(lambda: sample(tight, gone) == 1)
    assert 'status="5' not in httpx.get(f"{tight.url}/metrics").text


def test_bodies_count_as_they_arrive_until_their_client_disconnects(
    tight: Server,
) -> None:
    first, second = (open_upload(tight, 1_999_000, 1_998_000) for _ in range(2))
    try:
        until(lambda: open_refused(tight))
    finally:
        first.close()
        second.close()
    until(lambda: not open_refused(tight))
    assert ask(tight).status_code == 200
    assert sample(tight, 'vision_encoder_rejected_total{limit="bytes"}') > 0
    assert "Traceback" not in tight.log.read_text()


def test_announced_bodies_reserve_no_memory(tight: Server) -> None:
    slow = [open_upload(tight, 1_999_000) for _ in range(20)]  # ten times MAX_QUEUE_BYTES
    try:
        assert not open_refused(tight)
        assert ask(tight).status_code == 200
    finally:
        for connection in slow:
            connection.close()


def open_refused(server: Server) -> bool:
    """Return whether an upload of 1.9 MB is rejected when it is announced."""
    with open_upload(server, 1_900_000) as connection:
        connection.settimeout(0.5)
        try:
            return connection.recv(100).startswith(b"HTTP/1.1 429")
        except TimeoutError:
            return False


def test_fetched_images_count_like_uploaded_ones(tight: Server, site: str) -> None:
    model = httpx.get(f"{tight.url}/info").json()["model_name"]

    def ask(count: int) -> httpx.Response:
        body = {"model": model, "input": [{"image": site}] * count}
        return httpx.post(f"{tight.url}/v1/embeddings", json=body, timeout=60)

    refused = ask(3)
    assert (refused.status_code, problem(refused)[0]) == (413, "too_large")
    for _ in range(4):  # three at a time would exceed MAX_QUEUE_BYTES
        assert ask(2).status_code == 200


def test_items_of_a_vanished_client_are_dropped(tight: Server) -> None:
    before = sample(tight, 'vision_encoder_dropped_total{tower="text"}')
    texts = [f"a long text about nothing at all, number {i}, " * 5 for i in range(5000)]
    body = json.dumps({"texts": texts}).encode()
    head = (
        "POST /embed/texts HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    length, dropped = 'vision_encoder_queue_length{tower="text"}', 0.0
    for attempt in range(1, 31):  # an attempt fails if all items are on the device already
        with socket.create_connection(("127.0.0.1", int(tight.url.rpartition(":")[2]))) as client:
            client.sendall(head.encode() + body)
            until(lambda: sample(tight, length) > 0, 30)
        until(partial(gave_up_on, tight, attempt), 30)
        until(lambda: sample(tight, length) == 0, 30)
        dropped = sample(tight, 'vision_encoder_dropped_total{tower="text"}') - before
        if dropped:
            break
    assert dropped
    assert ask(tight).status_code == 200
