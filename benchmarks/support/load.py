"""The load generator, in a process of its own: python -m benchmarks.support.load < job.json

Closed loop: each of `clients` connections sends its next request when the last is answered.
Open loop: `rate` requests a second arrive at random, whether or not earlier ones are answered.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from benchmarks.support.harness import ROOT, TEXTS, UKRAINIAN, percentile, photos

Kind = Literal["text", "ukrainian", "image", "texts", "images", "bulk"]
KINDS: Final[tuple[Kind, ...]] = ("image", "text")
BULK: Final = 16  # images of a bulk request

_CONNECTIONS: Final = 1000  # at most, in the open loop
_IDLE_SECONDS: Final = 2.0  # older connections are opened anew: servers close them at 5 s
_DRAIN_SECONDS: Final = 60.0  # how long answers are waited for at the end
_BOUNDARY: Final = "benchmark-boundary"
_FAILED: Final = 0  # stands where a status would: the connection failed


@dataclass(frozen=True)
class Job:
    """What to send, how long; `rate` makes it an open loop."""

    port: int
    kind: Kind
    clients: int = 1
    rate: float | None = None
    seconds: float = 5.0
    busy_allowed: bool = False  # a 429 is an answer and no failure

    @property
    def warm_up(self) -> float:
        """Seconds of load before the window."""
        return min(1.0, self.seconds / 2)


@dataclass(frozen=True)
class Loaded:
    """What came of it. Latencies are in milliseconds."""

    rate: float  # answered with 200, a second, within the window
    statuses: dict[str, int]  # of requests that were answered after the warm-up
    errors: int  # connections that failed, or never answered
    failures: int  # those and wrong statuses, warm-up included
    requests: int  # warm-up included
    latency: dict[str, float] | None  # p50, p95, p99, max of 200s; None when there were none
    busy_latency: dict[str, float] | None  # the same of 429s
    cpu_ms: float  # of the generator, per request

    @property
    def p50(self) -> float:
        return self.of("p50")

    def of(self, name: str) -> float:
        """Return a latency of the 200s. Raises when there were none."""
        if self.latency is None:
            raise RuntimeError(f"nothing was answered with 200: {self.statuses}")
        return self.latency[name]


def load(port: int, kind: Kind, **options: Any) -> Loaded:
    """Run a job in a process of its own."""
    job = Job(port, kind, **options)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.support.load"],
        cwd=ROOT,
        input=json.dumps(asdict(job)).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return Loaded(**json.loads(done.stdout))


def prepared(kind: Kind) -> list[bytes]:
    """Return the HTTP requests to send in turn; `texts` and `images` are lists of one, `bulk` is
    one of `BULK` images."""
    if kind == "texts":
        return [posted("/embed/texts", {"texts": [text]}) for text in TEXTS]
    if kind in ("text", "ukrainian"):
        texts = TEXTS if kind == "text" else UKRAINIAN
        return [posted("/embed/text", {"text": text}) for text in texts]
    route, field = (
        ("/embed/image/upload", "file") if kind == "image" else ("/embed/images", "files")
    )
    before = (
        f'\r\n--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="photo.jpg"'
        "\r\nContent-Type: image/jpeg\r\n\r\n"
    ).encode()
    after = f"\r\n--{_BOUNDARY}--\r\n".encode()
    content_type = f"multipart/form-data; boundary={_BOUNDARY}"
    parts = [before + photo for photo in photos(BULK)]
    if kind == "bulk":
        parts = [b"".join(parts)]
    return [_posted(route, content_type, part + after) for part in parts]


def posted(route: str, body: dict[str, Any]) -> bytes:
    """Return the HTTP request that posts a JSON body."""
    return _posted(route, "application/json", json.dumps(body).encode())


def _posted(route: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"POST {route} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    """A keep-alive connection that is opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0

    async def ask(self, request: bytes) -> int:
        """Send a request, read its answer, return the status; 0 when the connection failed."""
        if time.perf_counter() - self._used > _IDLE_SECONDS:
            self.close()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            start = head.index(b"content-length:") + 15
            await reader.readexactly(int(head[start : head.index(b"\r\n", start)]))
            status = int(head[9:12])
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            self.close()
            return _FAILED
        if b"\r\nconnection: close" in head:
            self.close()
        self._used = time.perf_counter()
        return status

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None


class Generator:
    """Runs one job and keeps (began, ended, status) of every request."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._requests: Iterator[bytes] = itertools.cycle(prepared(job.kind))
        self._answers: list[tuple[float, float, int]] = []
        self._connections: list[Connection] = []
        self._start = self._end = 0.0  # of the window

    async def run(self) -> Loaded:
        job = self._job
        began, cpu_began = time.perf_counter(), time.process_time()
        self._start = began + job.warm_up
        self._end = self._start + job.seconds
        tasks = await self._open_loop(job.rate) if job.rate else self._closed_loop()
        remaining = max(0.0, self._end - time.perf_counter()) + _DRAIN_SECONDS
        done, unanswered = await asyncio.wait(tasks, timeout=remaining)
        for task in unanswered:
            task.cancel()
        await asyncio.gather(*unanswered, return_exceptions=True)
        for task in done:
            task.result()
        for connection in self._connections:
            connection.close()
        return self._summary(len(unanswered), time.process_time() - cpu_began)

    def _closed_loop(self) -> list[asyncio.Task[None]]:
        self._connections = [Connection(self._job.port) for _ in range(self._job.clients)]
        return [asyncio.create_task(self._client(each)) for each in self._connections]

    async def _client(self, connection: Connection) -> None:
        while (now := time.perf_counter()) < self._end:
            await self._ask(connection, now)

    async def _open_loop(self, rate: float) -> list[asyncio.Task[None]]:
        arrivals, tasks = random.Random(0), []
        free: list[Connection] = []
        places = asyncio.Semaphore(_CONNECTIONS)
        due = time.perf_counter()
        while due < self._end:
            await asyncio.sleep(due - time.perf_counter())
            tasks.append(asyncio.create_task(self._arrival(due, free, places)))
            due += arrivals.expovariate(rate)
        return tasks

    async def _arrival(self, due: float, free: list[Connection], places: asyncio.Semaphore) -> None:
        async with places:
            if not free:
                self._connections.append(Connection(self._job.port))
                free.append(self._connections[-1])
            connection = free.pop()
            await self._ask(connection, due)
            free.append(connection)

    async def _ask(self, connection: Connection, began: float) -> None:
        status = await connection.ask(next(self._requests))
        self._answers.append((began, time.perf_counter(), status))
        if status == _FAILED:
            await asyncio.sleep(0.05)  # not a storm against a server that is gone

    def _summary(self, unanswered: int, cpu_seconds: float) -> Loaded:
        expected = {200, 429} if self._job.busy_allowed else {200}
        measured = [answer for answer in self._answers if answer[1] >= self._start]
        statuses = Counter(status for _, _, status in measured)
        answered = [
            1
            for _, ended, status in self._answers
            if status == 200 and self._start <= ended < self._end
        ]
        requests = len(self._answers) + unanswered
        return Loaded(
            rate=len(answered) / self._job.seconds,
            statuses={str(status): n for status, n in sorted(statuses.items()) if status},
            errors=statuses[_FAILED] + unanswered,
            failures=unanswered + sum(status not in expected for _, _, status in self._answers),
            requests=requests,
            latency=_latency(measured, 200),
            busy_latency=_latency(measured, 429),
            cpu_ms=1000 * cpu_seconds / max(1, requests),
        )


def _latency(answers: list[tuple[float, float, int]], wanted: int) -> dict[str, float] | None:
    took = [1000 * (ended - began) for began, ended, status in answers if status == wanted]
    if not took:
        return None
    named = {f"p{percent}": percentile(took, percent) for percent in (50, 95, 99)}
    return {**named, "max": max(took)}


def main() -> None:
    generator = Generator(Job(**json.load(sys.stdin)))
    gc.freeze()  # collections stay short: what exists now is never looked at again
    print(json.dumps(asdict(asyncio.run(generator.run()))))


if __name__ == "__main__":
    main()
