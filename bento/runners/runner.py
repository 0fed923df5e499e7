"""A runner: one tower and its queue."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeVar

from bento.contract.errors import Busy, NotReady
from bento.encoder.cpus import compute_on, give_way
from bento.encoder.embeddings import Embeddings
from bento.runners.admission import ByteBudget
from bento.runners.batching import BatchQueue
from bento.runners.observer import Observer
from bento.runners.policy import Limits
from bento.settings import Settings

if TYPE_CHECKING:
    import torch

    from bento.encoder.tower import Tower

    Work = Callable[[], torch.Tensor]  # gives a prepared item
    Preparation = Callable[[], torch.Tensor | Work]  # or what a thread of its own is to do

Prepared = TypeVar("Prepared")

logger = logging.getLogger("vision_encoder")

HEALTH_SECONDS: Final = 5.0  # how long an answer of the device counts as a sign of life
HEALTH_TIMEOUT: Final = 10.0


@dataclass(frozen=True)
class Shared:
    """What both runners use."""

    settings: Settings
    budget: ByteBudget
    metrics: Observer
    threads: ThreadPoolExecutor  # as many as CPUs
    cpus: int
    large: ThreadPoolExecutor  # one
    on_death: Callable[[str], None]


class Runner:
    """One tower and its queue: admission, preparation in threads, batches on the device."""

    def __init__(
        self, name: str, tower: Tower, shared: Shared, limits: Limits, *, nice: int = 0
    ) -> None:
        from bento.encoder.tower import device_lost, out_of_memory

        self.name = name
        self.answered = monotonic()
        self._tower = tower
        self._out_of_memory = out_of_memory
        self._shared = shared
        self.metrics = shared.metrics.tower(name)
        self._accepted = 0  # items that are not yet answered
        self._window = 2 * limits.count  # of one request's items that are worked on at a time
        self._item_bytes = int(tower.probe()[0].nbytes)
        self._prepare_seconds = 0.0  # of a core for an item, as of late
        self.queue: BatchQueue[torch.Tensor, Embeddings] = BatchQueue(
            name,
            self._run,
            limits,
            self.metrics,
            size=tower.size,
            warm_up=self._warm_up,
            exhausted=out_of_memory,
            fatal=device_lost,
            on_death=shared.on_death,
            enter=partial(self._enter, nice),
        )

    async def embed(self, preparation: Preparation) -> Embeddings:
        """Return the raw embedding of one item, float32 (dim,).

        Raises `Busy` before anything is prepared, or when its turn comes too late after all, and
        what the preparation raises.
        """
        with self._accept(1) as due:
            return await self._embed(preparation, due)

    async def embed_all(
        self, preparations: Sequence[Preparation]
    ) -> list[Embeddings | BaseException]:
        """Return the raw embedding of each item, or what went wrong with it.

        Raises `Busy` for all of them before anything is prepared; once accepted they are all
        answered, but for a lone one, which is as in `embed`. Of a large request a part is worked
        on at a time, so that others get their turn in between.
        """
        if not preparations:
            return []  # and wait for nobody
        window = asyncio.Semaphore(self._window)

        async def embed(preparation: Preparation) -> Embeddings:
            async with window:
                return await self._embed(preparation, due)

        with self._accept(min(len(preparations), self._window)) as due:
            return await asyncio.gather(*map(embed, preparations), return_exceptions=True)

    async def look(self) -> NotReady | None:
        """Return why the tower cannot be relied on, if it cannot.

        One that answered nothing lately is asked for an embedding.
        """
        if self.queue.alive and monotonic() - self.answered < HEALTH_SECONDS:
            return None
        try:
            probe = self.queue.submit(self._tower.probe()[0])
            await asyncio.wait_for(asyncio.wrap_future(probe), HEALTH_TIMEOUT)
        except TimeoutError:
            return NotReady(f"the {self.name} tower has not answered for {HEALTH_TIMEOUT:.0f} s")
        except NotReady as error:
            return error
        except Exception as error:
            return NotReady(f"the {self.name} tower fails: {error}")
        return None

    @contextmanager
    def _accept(self, count: int) -> Iterator[float]:
        """Count items in until the block ends, and give when their answers are due.

        Raises `Busy` when too much is before them. Who is alone is never refused, nor are some of
        many items.
        """
        before, due = self._accepted, math.inf
        wait = max(
            self.queue.predicted_seconds(before),
            before * self._prepare_seconds / self._shared.cpus,
        )
        limit = self._shared.settings.max_queue_ms / 1000
        if before and wait > limit:
            self.metrics.rejected()
            raise Busy(
                f"{before} {self.name} items are before yours, so that it would take about "
                f"{wait:.1f} s where {limit:g} s are allowed: try again later",
                retry_after=math.ceil(wait - limit),
            )
        if before and count == 1:
            due = monotonic() + limit
        with self._shared.budget.hold(count * self._item_bytes):
            self._change_accepted(count)
            try:
                yield due
            finally:
                self._change_accepted(-count)

    def _change_accepted(self, count: int) -> None:
        self._accepted += count
        self.metrics.accepted(self._accepted)

    async def _embed(self, preparation: Preparation, due: float) -> Embeddings:
        loop, shared = asyncio.get_running_loop(), self._shared
        item = await loop.run_in_executor(shared.threads, self._prepare, preparation, due)
        if callable(item):  # alone, as if it had all cores
            item = await loop.run_in_executor(shared.large, self._prepare, item, due, shared.cpus)
        return await asyncio.wrap_future(self.queue.submit(item, deadline=due))

    def _prepare(self, step: Callable[[], Prepared], due: float, cores: int = 1) -> Prepared:
        """Do one step of a preparation. Raises `Busy` instead when the answer is already late.

        What an item takes is learnt from the step that gives it: to read a header takes nothing.
        """
        started = monotonic()
        if started > due:
            self.metrics.late()
            raise Busy(f"the {self.name} items before yours took too long: try again later")
        item = step()
        if not callable(item):
            seconds = monotonic() - started
            self._prepare_seconds += 0.1 * (seconds * cores - self._prepare_seconds)
            self.metrics.decoded(seconds)
        return item

    def _enter(self, nice: int, shares: int) -> None:
        """Give one of the queue's threads its priority and its cores: one, or all of them."""
        give_way(nice)
        compute_on(self._shared.cpus if shares == 1 else 1)

    def _run(self, items: list[torch.Tensor]) -> list[Embeddings]:
        embeddings = self._tower.embed(items)
        self.answered = monotonic()
        return list(embeddings)

    def _warm_up(self) -> Iterator[tuple[int, int, float]]:
        """Run the batches that the tower asks for, in the thread that will run all others."""
        for items in self._tower.warm_batches():
            try:
                self._tower.embed(items)  # compiles, records, allocates, starts threads
            except Exception as error:
                if not self._out_of_memory(error):
                    raise
                logger.warning(
                    "the device's memory is too small for %d items of the %s runner at once: "
                    "see MAX_BATCH_SIZE",
                    len(items),
                    self.name,
                )
                continue
            started = monotonic()
            self._tower.embed(items)
            yield len(items), sum(map(self._tower.size, items)), monotonic() - started
