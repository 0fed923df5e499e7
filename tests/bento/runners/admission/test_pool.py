"""Threads for one kind of work: turns by request, admission control, bytes of abandoned work."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from bento.contract.errors import Busy
from bento.runners.admission import ByteBudget
from bento.runners.pool import Pool
from bento.runners.timing import Timing
from tests.bento.runners.fakes import Clock

T = TypeVar("T")


class Gate:
    """Calls that wait until `open` is set, and record when they run."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.ran: list[str] = []
        self.running = 0
        self.most = 0
        self._lock = threading.Lock()

    def call(self, name: str) -> str:
        with self._lock:
            self.ran.append(name)
            self.running += 1
            self.most = max(self.most, self.running)
        assert self.open.wait(10)
        with self._lock:
            self.running -= 1
        return name


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def budget() -> ByteBudget:
    return ByteBudget(1000, lambda: None)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def scene(pool: Pool, play: Callable[[], Awaitable[T]]) -> T:
    async def run() -> T:
        return await play()

    try:
        return asyncio.run(run())
    finally:
        pool.close()


def test_a_call_returns_its_result_or_raises_its_error() -> None:
    pool = Pool("test", 1)
    variable = contextvars.ContextVar[str]("variable")

    async def play() -> None:
        variable.set("of the caller")
        assert await pool.run(variable.get) == "of the caller"
        assert await pool.run(divmod, 7, 2) == (3, 1)
        assert await pool.run(int, "11", base=2) == 3
        with pytest.raises(ZeroDivisionError):
            await pool.run(divmod, 7, 0)

    scene(pool, play)


def test_requests_take_turns(gate: Gate, budget: ByteBudget) -> None:
    pool = Pool("test", 1)

    async def request(name: str, count: int) -> list[str]:
        with budget.claim():
            return await asyncio.gather(*(pool.run(gate.call, f"{name}{i}") for i in range(count)))

    async def play() -> list[list[str]]:
        many = asyncio.create_task(request("many", 4))
        await until(lambda: gate.ran)
        one = asyncio.create_task(request("one", 1))
        two = asyncio.create_task(request("two", 2))
        await asyncio.sleep(0)
        gate.open.set()
        return [await many, await one, await two]

    assert scene(pool, play)[0] == ["many0", "many1", "many2", "many3"]
    assert gate.ran == ["many0", "many1", "one0", "two0", "many2", "two1", "many3"]


def test_one_request_does_not_take_all_threads(gate: Gate, budget: ByteBudget) -> None:
    pool = Pool("test", 3, share=2)

    async def request(name: str, count: int) -> None:
        with budget.claim():
            await asyncio.gather(*(pool.run(gate.call, name) for _ in range(count)))

    async def play() -> None:
        many = asyncio.create_task(request("many", 6))
        await until(lambda: len(gate.ran) == 2)
        assert gate.running == 2
        one = asyncio.create_task(request("one", 1))
        await until(lambda: gate.running == 3)
        assert gate.ran == ["many", "many", "one"]
        gate.open.set()
        await many
        await one

    scene(pool, play)
    assert gate.most == 3


def test_calls_without_a_request_take_turns_too(gate: Gate) -> None:
    pool = Pool("test", 2)

    async def play() -> list[str]:
        gate.open.set()
        return await asyncio.gather(*(pool.run(gate.call, str(i)) for i in range(20)))

    assert scene(pool, play) == [str(i) for i in range(20)]


def test_bytes_are_held_while_an_abandoned_call_runs(gate: Gate, budget: ByteBudget) -> None:
    pool = Pool("test", 1)

    async def request() -> None:
        with budget.claim() as claim:
            claim.take(400)
            await pool.run(gate.call, "abandoned")

    async def play() -> None:
        task = asyncio.create_task(request())
        await until(lambda: gate.running)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert budget.held == 400
        gate.open.set()
        await until(lambda: budget.held == 0)

    scene(pool, play)


def test_a_call_whose_request_has_ended_is_skipped(gate: Gate, budget: ByteBudget) -> None:
    pool = Pool("test", 1)

    async def request(name: str) -> str:
        with budget.claim() as claim:
            claim.take(10)
            return await pool.run(gate.call, name)

    async def play() -> None:
        first = asyncio.create_task(request("first"))
        await until(lambda: gate.running)
        tasks = [asyncio.create_task(request(name)) for name in ("left", "stays")]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        assert budget.held == 20  # what waits, and nobody waits for, holds nothing
        gate.open.set()
        assert [await first, await tasks[1]] == ["first", "stays"]

    scene(pool, play)
    assert gate.ran == ["first", "stays"]
    assert budget.held == 0


def test_a_call_that_would_wait_too_long_is_rejected(budget: ByteBudget) -> None:
    clock = Clock()
    rejections: list[None] = []
    pool = Pool(
        "store",
        2,
        max_seconds=10,
        rejected=lambda: rejections.append(None),
        timing=Timing(clock=clock),
    )
    gate = Gate()

    def takes(seconds: float) -> None:
        clock.now += seconds

    async def request(cost: float = 1.0) -> None:
        with budget.claim():
            await asyncio.gather(pool.run(gate.call, "", cost=cost))

    async def play() -> None:
        await pool.run(takes, 3.0, cost=1.5)  # 2 s per unit of cost
        heavy = asyncio.create_task(request(cost=1000))  # the pool is idle
        await until(lambda: gate.running)
        with pytest.raises(
            Busy, match=r"the store threads are busy, .* about 1000\.0 s; the limit is 10 s"
        ) as rejection:
            await pool.run(takes, 0.0)
        assert rejection.value.retry_after == 990
        gate.open.set()
        await heavy
        await pool.run(takes, 0.0)

    scene(pool, play)
    assert len(rejections) == 1


def test_further_calls_of_an_admitted_request_are_not_rejected(budget: ByteBudget) -> None:
    clock, gate = Clock(), Gate()
    pool = Pool("test", 1, max_seconds=10, timing=Timing(clock=clock))

    def takes(seconds: float) -> None:
        clock.now += seconds

    async def play() -> list[str]:
        await pool.run(takes, 5.0)
        with budget.claim():
            calls = [pool.run(gate.call, str(i)) for i in range(5)]
            tasks = [asyncio.create_task(call) for call in calls]
            await until(lambda: gate.running)
            gate.open.set()
            return await asyncio.gather(*tasks)

    assert scene(pool, play) == ["0", "1", "2", "3", "4"]
