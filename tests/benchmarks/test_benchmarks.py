"""The load generator, the servers and the help of the benchmarks."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from benchmarks.forward import Forward
from benchmarks.support.inputs import checkpoint
from benchmarks.support.load import load
from benchmarks.support.servers import free_port, running

pytestmark = pytest.mark.service

BENCHMARKS = (
    "attack.__main__",
    "batching",
    "client",
    "forward",
    "framework",
    "indexing",
    "isolation",
    "preprocess",
    "search",
    "serving",
    "soak",
    "startup",
)
CLOSED = 0  # instead of a status: the server closes the connection without an answer


class Loopback:
    """Answers the n-th request with the status `status_of(n)`, and counts the answers."""

    def __init__(self, status_of: Callable[[int], int], delay: float) -> None:
        self.counts: Counter[int] = Counter()
        self.port = 0
        self._status_of = status_of
        self._delay = delay

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        async with server:
            await stop.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split()[0]))
                status = self._status_of(self.counts.total())
                self.counts[status] += 1
                await asyncio.sleep(self._delay)
                if status == CLOSED:
                    return
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % status)
        except asyncio.IncompleteReadError:
            pass  # the client has closed the connection
        finally:
            writer.close()


@contextmanager
def loopback(status_of: Callable[[int], int], delay: float = 0.001) -> Iterator[Loopback]:
    answering, started, stop = Loopback(status_of, delay), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(
        target=loop.run_until_complete, args=(answering.serve(started, stop),)
    )
    thread.start()
    try:
        assert started.wait(10)
        yield answering
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(SystemExit, match="NoSuchModel"):
        checkpoint("NoSuchModel")


def test_trimmed_texts_have_the_embeddings_of_padded_ones() -> None:
    forward = Forward("shapes", "float32", "cpu")
    for trimmed, padded in zip(
        forward.batches("text, trimmed", 32), forward.batches("text, padded", 32), strict=True
    ):
        assert trimmed.shape[1] < padded.shape[1]
        with torch.inference_mode():
            torch.testing.assert_close(
                forward.towers["text, trimmed"](trimmed),
                forward.towers["text, padded"](padded),
                atol=1e-4,
                rtol=0,
            )


@pytest.mark.parametrize("busy_allowed", [False, True])
def test_unexpected_statuses_and_closed_connections_are_failures(busy_allowed: bool) -> None:
    with loopback(lambda n: (200, 429, 500, CLOSED)[n % 4]) as server:
        loaded = load(server.port, "text", clients=4, seconds=0.6, busy_allowed=busy_allowed)
    counts = server.counts
    assert loaded.requests == counts.total()
    assert loaded.failures == counts[500] + counts[CLOSED] + (0 if busy_allowed else counts[429])
    assert loaded.statuses.keys() == {"200", "429", "500"}
    assert 0 < loaded.errors <= counts[CLOSED]
    assert loaded.latency
    assert loaded.busy_latency


def test_without_a_server_every_request_fails() -> None:
    loaded = load(free_port(), "text", seconds=0.3)
    assert loaded.failures == loaded.requests > 0
    with pytest.raises(RuntimeError, match="no request was answered with 200"):
        _ = loaded.p50


def test_a_closed_loop_waits_for_each_answer() -> None:
    with loopback(lambda _: 200, delay=0.05) as server:
        loaded = load(server.port, "image", clients=5, seconds=1.0)
    assert loaded.failures == 0
    assert 50 <= loaded.p50 < 100
    assert loaded.rate <= 5 / 0.05
    assert loaded.rate == pytest.approx(5000 / loaded.p50, rel=0.25)


def test_an_open_loop_keeps_its_rate_although_answers_are_slow() -> None:
    with loopback(lambda _: 200, delay=0.3) as server:
        loaded = load(server.port, "text", rate=200, seconds=1.0)
    assert loaded.failures == 0
    assert loaded.p50 >= 300
    assert loaded.requests == pytest.approx(1.5 * 200, abs=80)  # half a second of warm-up


def test_a_service_that_does_not_start_shows_its_log() -> None:
    command = [sys.executable, "-c", "raise SystemExit('broken on purpose')"]
    with (
        pytest.raises(RuntimeError, match="broken on purpose"),
        running(command, free_port(), "/readyz"),
    ):
        pass


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit) as left:
        benchmark.main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert f"python -m benchmarks.{name.removesuffix('.__main__')}" in shown
    assert "--quick" in shown
