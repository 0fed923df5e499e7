"""A served service under overload, with slow and vanished clients, and with SIGTERM."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from benchmarks.support.load import load
from tests.support.bento.broken import broken
from tests.support.pictures import file_bytes, scene_image
from tests.support.serving import Server, serving

pytestmark = pytest.mark.service

IDLE = 2000  # connections
CONNECTIONS = 1000  # MAX_CONNECTIONS

# A text of more than 100 tokens takes 6 s.
SLOW = """
import time
from bento.encoder.text_tower import TextTower
embed = TextTower.embed
def slowly(self, items):
    if any(len(item) > 100 for item in items):
        time.sleep(6)
    return embed(self, items)
TextTower.embed = slowly
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE + 1000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(
            f"the test needs {wanted} open files, but the hard limit (ulimit -Hn) is {hard}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))  # the service inherits it
    with serving(
        tmp_path_factory.mktemp("load"), QDRANT_ENABLED="false", MAX_QUEUE_MS="1000"
    ) as server:
        yield server
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def port(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worker(server: Server) -> psutil.Process:
    (found,) = psutil.Process(server.pid).children()
    return found


def test_overload_is_answered_200_or_429_and_leaves_no_slowness(
    loaded: Server,
) -> None:
    load(port(loaded), "image", clients=32, seconds=2)
    before = load(port(loaded), "image", seconds=2)
    memory = worker(loaded).memory_info().rss
    # 500 closed-loop clients: many more than the service handles at a time
    crowd = load(port(loaded), "text", clients=500, seconds=6, busy_allowed=True)
    assert (crowd.errors, crowd.failures) == (0, 0), crowd
    assert crowd.statuses.keys() == {"200", "429"}
    assert (
        crowd.of("max") < 15_000
    )  # ms; MAX_QUEUE_MS is 1000, but load and service share the cores
    assert worker(loaded).memory_info().rss - memory < 150e6
    with loaded.client() as http:
        assert http.post("/embed/text", json={"text": "a"}).status_code == 200
    after = load(port(loaded), "image", seconds=2)
    assert after.p50 < 4 * before.p50 + 20


def open_many(stack: ExitStack, server: Server, count: int, begin: bytes) -> list[socket.socket]:
    opened = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port(server)), timeout=20)
        stack.enter_context(connection)
        connection.sendall(begin)
        opened.append(connection)
    return opened


def test_idle_slow_and_vanished_clients_delay_no_other_client(loaded: Server) -> None:
    head = b"POST /embed/text HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    slow_body = head + b"Content-Length: 60000000\r\n\r\n{"  # together more than MAX_QUEUE_BYTES
    body = json.dumps({"text": "a red circle"}).encode()
    complete = head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    before, files = load(port(loaded), "text", seconds=3), worker(loaded).num_fds()
    with ExitStack() as stack:
        open_many(stack, loaded, IDLE, b"")  # more than MAX_CONNECTIONS
        open_many(stack, loaded, 50, slow_body)
        open_many(stack, loaded, 50, head)
        until(lambda: worker(loaded).num_fds() > files + CONNECTIONS - 100)
        with ExitStack() as vanishing:  # during the body, or before the answer
            open_many(vanishing, loaded, 50, slow_body)
            open_many(vanishing, loaded, 50, complete)
        during = load(port(loaded), "text", seconds=3)
        assert during.failures == 0
        assert during.p50 < 4 * before.p50 + 20
        assert worker(loaded).num_fds() < files + CONNECTIONS + 100
    until(lambda: worker(loaded).num_fds() < files + 10)


def test_sigterm_under_load_answers_accepted_requests_and_refuses_the_rest(tmp_path: Path) -> None:
    picture = file_bytes(scene_image(1), "JPEG")
    # images wait for slow texts, and must not be shed
    environment = {"QDRANT_ENABLED": "false", "MAX_QUEUE_MS": "60000", **broken(tmp_path, SLOW)}
    with serving(tmp_path, **environment) as server:
        outcomes = asyncio.run(stop_under_load(server, picture))
        assert psutil.Process(server.pid).wait(60) == 0
        lines = [json.loads(x) for x in server.log.read_text().splitlines() if x.startswith("{")]
        accepted = {x["request_id"]: x["status"] for x in lines if x["message"] == "request"}
        answered = {id: status for id, status in outcomes.items() if isinstance(status, int)}
        assert accepted.items() <= answered.items()
        assert set(accepted.values()) == {200}
        kinds = Counter(outcomes.values())
        assert kinds.keys() <= {200, 503, "refused", "closed"}, kinds
        assert kinds[200] > 32
        assert kinds["refused"] > 0
        assert "Traceback" not in server.log.read_text()


async def stop_under_load(server: Server, picture: bytes) -> dict[str, int | str]:
    """Stop the service under load, and return the outcome of each request by its id."""
    outcomes: dict[str, int | str] = {}

    async def client(http: httpx.AsyncClient) -> None:
        while True:
            request_id = uuid4().hex
            try:
                answer = await http.post(
                    "/embed/image/upload",
                    files={"file": picture},
                    headers={"X-Request-ID": request_id},
                )
                outcomes[request_id] = answer.status_code
            except httpx.ConnectError:
                outcomes[request_id] = "refused"
                return
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                outcomes[request_id] = (
                    "closed"  # an idle connection was closed when it was used again
                )

    async def stop(http: httpx.AsyncClient) -> None:
        async with asyncio.timeout(60):
            while len(outcomes) < 64:
                await asyncio.sleep(0.05)
        slow = asyncio.create_task(
            http.post("/embed/text", json={"text": "a " * 200}, headers={"X-Request-ID": "slow"})
        )
        async with asyncio.timeout(60):
            while 'queue_length{tower="text"} 1' not in (await http.get("/metrics")).text:
                await asyncio.sleep(0.05)
        os.kill(server.pid, signal.SIGTERM)
        async with asyncio.timeout(60):
            while "refused" not in outcomes.values():
                await asyncio.sleep(0.05)
        assert not slow.done()  # new connections are refused before the last answer
        outcomes["slow"] = (await slow).status_code

    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:
        async with asyncio.timeout(90):
            await asyncio.gather(*(client(http) for _ in range(32)), stop(http))
    return outcomes
