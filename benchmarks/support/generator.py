"""The load generator: reads a `Job` as JSON from standard input, prints a `Loaded`.

It is not Locust, which takes 2.5 times the CPU time per text (32 clients, 30 November 2026, 2 cores
of an Intel Xeon at 2.8 GHz).
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Final

from benchmarks.support.inputs import TEXTS, UKRAINIAN, photos
from benchmarks.support.load import BULK, Job, Kind, Loaded
from benchmarks.support.mixture import mixture, vanish
from loadtests.samples import Answer, Outcome, Samples, percentile
from loadtests.traffic.bodies import Prepared, posted, upload

_CONNECTIONS: Final = 1000  # at most, in the open loop
_MIXTURE_CLIENTS: Final = 6
_IDLE_SECONDS: Final = 2.0  # reopen a connection after that, because servers close it after 5 s
_LATE_SECONDS: Final = 1.0  # the mixture catches up with at most this delay
_DRAIN_SECONDS: Final = 60.0  # to wait for the last answers
_RECONNECT_SECONDS: Final = 0.05  # pause after a failed connection
_FAILED: Final = 0  # instead of a status


class Connection:
    """A keep-alive connection that opens on first use."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0

    async def ask(self, request: bytes) -> int:
        """Send a request and return the status of its answer; 0 if the connection failed."""
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
    """Runs one job and records every answer."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._requests = itertools.cycle([(each, each.encoded()) for each in prepared(job.kind)])
        self._samples = Samples()
        self._connections: list[Connection] = []
        self._end = 0.0

    async def run(self) -> Loaded:
        """Send the requests, wait for the last answers and summarize them."""
        job = self._job
        start, cpu_began = time.time() + job.warm_up, time.process_time()
        self._end = time.perf_counter() + job.warm_up + job.seconds
        if job.kind == "mixture":
            assert job.rate
            threading.Thread(target=vanish, args=(job.port,), daemon=True).start()
            tasks = self._clients(_MIXTURE_CLIENTS, _MIXTURE_CLIENTS / job.rate)
        elif job.rate:
            tasks = await self._open_loop(job.rate)
        else:
            tasks = self._clients(job.clients)
        remaining = max(0.0, self._end - time.perf_counter()) + _DRAIN_SECONDS
        done, unanswered = await asyncio.wait(tasks, timeout=remaining)
        for task in unanswered:
            task.cancel()
        await asyncio.gather(*unanswered, return_exceptions=True)
        for task in done:
            task.result()
        for _ in unanswered:
            self._samples.add(job.kind, "failed", 0.0, "no answer in time", _FAILED)
        for connection in self._connections:
            connection.close()
        return _summary(job, start, self._samples, time.process_time() - cpu_began)

    def _clients(self, count: int, pause: float = 0.0) -> list[asyncio.Task[None]]:
        """Start clients that pause between requests, or send the next one after an answer."""
        self._connections = [Connection(self._job.port) for _ in range(count)]
        return [asyncio.create_task(self._client(each, pause)) for each in self._connections]

    async def _client(self, connection: Connection, pause: float) -> None:
        due, late = time.perf_counter(), _LATE_SECONDS if pause else 0.0
        while due < self._end:
            if pause:
                await asyncio.sleep(due - time.perf_counter())
            await self._ask(connection, time.perf_counter())
            due = max(due + pause, time.perf_counter() - late)

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
        request, data = next(self._requests)
        status = await connection.ask(data)
        ms = 1000 * (time.perf_counter() - began)
        outcome: Outcome = "busy" if status == 429 else "failed"
        if status in request.statuses:
            outcome = "ok"
        problem = f"{request.route} answered {status}" if outcome == "failed" else ""
        self._samples.add(self._job.kind, outcome, ms, problem, status)
        if status == _FAILED:
            await asyncio.sleep(_RECONNECT_SECONDS)


def prepared(kind: Kind) -> list[Prepared]:
    """Return the requests of a kind."""
    if kind == "mixture":
        return mixture()
    if kind == "texts":
        return [posted("/embed/texts", {"texts": [text]}) for text in TEXTS]
    if kind in ("text", "ukrainian"):
        texts = TEXTS if kind == "text" else UKRAINIAN
        return [posted("/embed/text", {"text": text}) for text in texts]
    pictures = photos(BULK)
    if kind == "image":
        return [upload("/embed/image/upload", "file", [photo]) for photo in pictures]
    lists = [pictures] if kind == "bulk" else [[photo] for photo in pictures]
    return [upload("/embed/images", "files", each) for each in lists]


def _summary(job: Job, start: float, samples: Samples, cpu_seconds: float) -> Loaded:
    answers, end = samples.answers, start + job.seconds
    measured = [answer for answer in answers if _ended(answer) >= start]
    statuses = Counter(answer.status for answer in measured)
    problems = samples.problems
    if not job.busy_allowed and (busy := sum(each.outcome == "busy" for each in answers)):
        problems["answered 429"] = busy
    return Loaded(
        rate=sum(each.outcome == "ok" and _ended(each) < end for each in measured) / job.seconds,
        statuses={str(status): n for status, n in sorted(statuses.items()) if status},
        errors=statuses[0],
        failures=problems.total(),
        requests=len(answers),
        problems=dict(problems),
        latency=_latency(each.ms for each in measured if each.outcome == "ok"),
        busy_latency=_latency(each.ms for each in measured if each.outcome == "busy"),
        cpu_ms=1000 * cpu_seconds / max(1, len(answers)),
    )


def _ended(answer: Answer) -> float:
    return answer.at + answer.ms / 1000


def _latency(values: Iterable[float]) -> dict[str, float] | None:
    took = list(values)
    if not took:
        return None
    return {**{f"p{each}": percentile(took, each) for each in (50, 95, 99)}, "max": max(took)}


def main() -> None:
    generator = Generator(Job(**json.load(sys.stdin)))
    gc.freeze()  # keeps garbage collections short
    print(json.dumps(asdict(asyncio.run(generator.run()))))


if __name__ == "__main__":
    main()
