"""Threads for one kind of work, with admission control and turns by request."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from bento.contract.errors import Busy
from bento.runners.admission import Claim, current_claim
from bento.runners.timing import TIMING, Timing

T = TypeVar("T")

_WEIGHT: Final = 0.1  # of the latest call in the moving average of the pace


@dataclass(eq=False, slots=True)
class _Job:
    call: Callable[[], Any]
    cost: float
    claim: Claim | None
    answer: asyncio.Future[Any]
    started: bool = False

    @property
    def wanted(self) -> bool:
        return not (self.answer.done() or (self.claim and self.claim.gone))


class Pool:
    """Runs blocking calls on its threads. Use it from one event loop.

    Requests take turns: a request with many calls does not delay one with few. The threads count
    as part of their request, whose bytes stay in the budget until the last thread has ended. A
    call whose request has ended before its turn is skipped.

    Args:
        name: of the threads, and in errors.
        threads: the most calls at a time.
        share: the most calls of one request at a time; by default all threads.
        max_seconds: the longest predicted wait; beyond it, a new call is rejected.
        rejected: called for each rejection.
        enter: called at the start of each thread.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        *,
        share: int | None = None,
        max_seconds: float = math.inf,
        rejected: Callable[[], None] = lambda: None,
        enter: Callable[[], None] = lambda: None,
        timing: Timing = TIMING,
    ) -> None:
        self._name = name
        self._threads = threads
        self._free = threads
        self._share = share or threads
        self._max_seconds = max_seconds
        self._rejected = rejected
        self._clock = timing.clock
        self._executor = ThreadPoolExecutor(threads, name, enter)
        self._waiting: dict[Hashable, deque[_Job]] = {}  # by request; the first has the next turn
        self._running: dict[Hashable, int] = {}  # calls of each request
        self._ahead = 0.0  # cost of what runs, and of the next call of each waiting request
        self._seconds = 0.0  # per unit of cost, a moving average

    async def run(
        self, call: Callable[..., T], /, *args: Any, cost: float = 1.0, **options: Any
    ) -> T:
        """Return the result of a call on a thread, in the request's turn, or raise its error.

        `cost` compares this call with others of the pool. Raises `Busy` if the predicted wait is
        too long; a call that finds an idle pool or more calls of its own request is not rejected.
        """
        claim = current_claim.get(None)
        context = contextvars.copy_context()
        answer = asyncio.get_running_loop().create_future()
        job = _Job(partial(context.run, partial(call, *args, **options)), cost, claim, answer)
        request: Hashable = claim.request if claim else job
        if request not in self._waiting and request not in self._running:
            self._admit()
        jobs = self._waiting.setdefault(request, deque())
        jobs.append(job)
        if len(jobs) == 1:
            self._ahead += cost
        self._start()
        try:
            result: T = await answer
        finally:
            if not job.started:  # the client has left; until its turn, the call holds no data
                job.call = _nothing
        return result

    def close(self) -> None:
        """Wait for the threads to end."""
        self._executor.shutdown()

    def _admit(self) -> None:
        wait = self._ahead * self._seconds / self._threads
        if wait > self._max_seconds:
            self._rejected()
            raise Busy(
                f"the {self._name} threads are busy, and your request would wait about "
                f"{wait:.1f} s; the limit is {self._max_seconds:g} s (MAX_QUEUE_MS): try again "
                "later",
                retry_after=math.ceil(wait - self._max_seconds),
            )

    def _start(self) -> None:
        """Start the next calls of the waiting requests, in turn, while threads are free."""
        while self._free:
            turn = (one for one in self._waiting if self._running.get(one, 0) < self._share)
            request = next(turn, None)
            if request is None:
                return
            job = self._take(request)
            if job is None:
                continue
            job.started = True
            self._free -= 1
            self._running[request] = self._running.get(request, 0) + 1
            self._ahead += job.cost
            if job.claim:
                job.claim.keep()
            self._executor.submit(self._call, request, job, asyncio.get_running_loop())

    def _take(self, request: Hashable) -> _Job | None:
        """Remove the next wanted call of a request, and put the request behind the others."""
        jobs = self._waiting.pop(request)
        found = None
        while jobs and found is None:
            job = jobs.popleft()
            self._ahead += (jobs[0].cost if jobs else 0) - job.cost
            if job.wanted:
                found = job
            else:
                job.answer.cancel()
        if jobs:
            self._waiting[request] = jobs
        return found

    def _call(self, request: Hashable, job: _Job, loop: asyncio.AbstractEventLoop) -> None:
        result, error, started = None, None, self._clock()
        try:
            result = job.call()
        except BaseException as caught:  # noqa: BLE001 - the caller of `run` gets it
            error = caught
        seconds = self._clock() - started
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._ended, request, job, seconds, result, error)

    def _ended(
        self,
        request: Hashable,
        job: _Job,
        seconds: float,
        result: Any,
        error: BaseException | None,
    ) -> None:
        self._free += 1
        self._running[request] -= 1
        if not self._running[request]:
            del self._running[request]
        self._ahead -= job.cost
        pace = seconds / job.cost
        self._seconds += (_WEIGHT if self._seconds else 1) * (pace - self._seconds)
        if job.claim:
            job.claim.drop()
        if not job.answer.done():
            if error is None:
                job.answer.set_result(result)
            else:
                job.answer.set_exception(error)
        self._start()


def _nothing() -> None:
    """Replace a call that nobody waits for."""
