"""A runner: a tower, its queue, and the preparation of its items."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from bento.contract.errors import Busy, NotReady
from bento.encoder.cpus import AllCores, compute_on, give_way
from bento.encoder.embeddings import Embeddings
from bento.runners.admission import ByteBudget
from bento.runners.batching import BatchQueue
from bento.runners.lane import missed_deadline
from bento.runners.observer import Observer
from bento.runners.policy import Limits
from bento.runners.pool import Pool
from bento.runners.timing import Timing
from bento.settings import Settings

if TYPE_CHECKING:
    import torch

    from bento.encoder.tower import Tower

    # a preparation returns the prepared item or, for a large picture, a function that prepares it
    Work = Callable[[], torch.Tensor]
    Preparation = Callable[[], torch.Tensor | Work]

Prepared = TypeVar("Prepared")

logger = logging.getLogger("vision_encoder")


@dataclass(frozen=True)
class Shared:
    """The parts that both runners share."""

    settings: Settings
    budget: ByteBudget
    metrics: Observer
    threads: Pool  # one per CPU
    cpus: int
    large: Pool  # one thread, for large pictures
    on_death: Callable[[str], None]
    timing: Timing
    all_cores: AllCores | None  # None on a GPU, where each queue computes on its own thread


class Runner:
    """Embeds items with one tower: admits them, prepares them in threads, and queues them.

    Attributes:
        answered: when the tower last computed a batch, in seconds of the clock.
        prepare_seconds: how long one core prepares an item, a moving average.
    """

    def __init__(
        self,
        name: str,
        tower: Tower,
        shared: Shared,
        limits: Limits,
        *,
        nice: int = 0,
        chunk: int = 1,
    ) -> None:
        from bento.encoder.tower import device_lost, out_of_memory

        self.name = name
        self.answered = shared.timing.clock()
        self.prepare_seconds = 0.0
        self._tower = tower
        self._out_of_memory = out_of_memory
        self._shared = shared
        self.metrics = shared.metrics.tower(name)
        self._accepted = 0  # items that are accepted and not yet answered
        self._chunk = chunk
        self._window = 2 * limits.count  # the most items of one request that are prepared or queued
        self._item_bytes = int(tower.probe()[0].nbytes)
        self.queue: BatchQueue[torch.Tensor, Embeddings] = BatchQueue(
            name,
            self._run_whole,
            limits,
            self.metrics,
            run_part=self._run_part,
            size=tower.size,
            warm_up=self._warm_up,
            exhausted=out_of_memory,
            fatal=device_lost,
            on_death=shared.on_death,
            enter=partial(self._enter, nice),
            timing=shared.timing,
        )

    async def embed(self, preparation: Preparation) -> Embeddings:
        """Return the embedding of one item before normalization, float32 (dim,).

        Raises `Busy` if admission control rejects the item or the queue sheds it, and any error of
        the preparation.
        """
        with self._accept(1) as deadline:
            (row,) = await self._embed([preparation], deadline)
        if isinstance(row, BaseException):
            raise row
        return row

    async def embed_all(
        self, preparations: Sequence[Preparation]
    ) -> list[Embeddings | BaseException]:
        """Return the embedding of each item before normalization, or its error.

        A single item has a deadline, as in `embed`; several items have none. A large request is
        prepared and queued in parts, so that other requests get their turn in between.

        Raises `Busy` if admission control rejects the request.
        """
        if not preparations:
            return []  # admission control never rejects an empty request
        window = asyncio.Semaphore(self._window // self._chunk)

        async def embed(start: int) -> list[Embeddings | BaseException]:
            async with window:
                chunk = preparations[start : start + self._chunk]
                return await self._embed(chunk, deadline)

        with self._accept(min(len(preparations), self._window)) as deadline:
            starts = range(0, len(preparations), self._chunk)
            chunks = await asyncio.gather(*map(embed, starts))
        return [row for chunk in chunks for row in chunk]

    async def look(self) -> NotReady | None:
        """Return why the tower is unhealthy, or `None` if it is healthy.

        If the tower has not computed a batch within `Timing.healthy`, this asks it for one.
        """
        timing = self._shared.timing
        if self.queue.alive and timing.clock() - self.answered < timing.healthy:
            return None
        try:
            probe = self.queue.submit(self._tower.probe()[0])
            await asyncio.wait_for(asyncio.wrap_future(probe), timing.probe)
        except TimeoutError:
            return NotReady(f"the {self.name} tower has not answered for {timing.probe:.0f} s")
        except NotReady as error:
            return error
        except Exception as error:  # noqa: BLE001 - a broken tower may raise any error
            return NotReady(f"the {self.name} tower fails: {error}")
        return None

    @contextmanager
    def _accept(self, count: int) -> Iterator[float]:
        """Admit items until the block ends, and yield their deadline.

        A single item has a deadline if others are before it. Several items have none, because
        shedding one of them would fail their whole request.

        Raises `Busy` if others are before these items and the predicted wait exceeds MAX_QUEUE_MS,
        or if the byte budget is exhausted.
        """
        before, deadline = self._accepted, math.inf
        wait = max(
            self.queue.predicted_seconds(before),
            before * self.prepare_seconds / self._shared.cpus,
        )
        limit = self._shared.settings.max_queue_ms / 1000
        if before and wait > limit:
            self.metrics.rejected()
            raise Busy(
                f"the {self.name} queue holds {before} items, and your request would take about "
                f"{wait:.1f} s; the limit is {limit:g} s (MAX_QUEUE_MS): try again later",
                retry_after=math.ceil(wait - limit),
            )
        if before and count == 1:
            deadline = self._shared.timing.clock() + limit
        with self._shared.budget.claim() as claim:
            claim.take(count * self._item_bytes)
            self._change_accepted(count)
            try:
                yield deadline
            finally:
                self._change_accepted(-count)

    def _change_accepted(self, count: int) -> None:
        self._accepted += count
        self.metrics.accepted(self._accepted)

    async def _embed(
        self, preparations: Sequence[Preparation], deadline: float
    ) -> list[Embeddings | BaseException]:
        """Prepare items on one thread, and return the embedding of each, or its error."""
        shared = self._shared
        prepared = await shared.threads.run(self._prepare_all, preparations, deadline)
        for i, item in enumerate(prepared):
            if callable(item):  # one large picture is decoded at a time, so it costs all cores
                prepared[i] = await shared.large.run(self._prepare, item, deadline, shared.cpus)
        items = [item for item in prepared if not (isinstance(item, Exception) or callable(item))]
        futures = map(asyncio.wrap_future, self.queue.submit_all(items, deadline=deadline))
        rows = iter(await asyncio.gather(*futures, return_exceptions=True))
        return [item if isinstance(item, Exception) else next(rows) for item in prepared]

    def _prepare_all(
        self, preparations: Sequence[Preparation], deadline: float
    ) -> list[torch.Tensor | Work | Exception]:
        return [self._prepare(preparation, deadline) for preparation in preparations]

    def _prepare(
        self, step: Callable[[], Prepared], deadline: float, cores: int = 1
    ) -> Prepared | Exception:
        """Run one step of a preparation, which costs this many cores. Return its error, if any.

        Only the step that returns the item counts as preparation time. Reading the header of a
        large picture before takes hardly any. If the deadline has passed, the error is `Busy`.
        """
        clock = self._shared.timing.clock
        started = clock()
        if started > deadline:
            self.metrics.late()
            return missed_deadline(self.name)
        try:
            item = step()
        except Exception as error:  # noqa: BLE001 - the caller of `embed` gets it
            return error
        if not callable(item):
            seconds = clock() - started
            self.prepare_seconds += 0.1 * (seconds * cores - self.prepare_seconds)
            self.metrics.decoded(seconds)
        return item

    def _enter(self, nice: int) -> None:
        """Set the priority of the calling thread of the queue, and let it compute on one core."""
        give_way(nice)
        compute_on(1)

    def _run_whole(self, items: list[torch.Tensor]) -> list[Embeddings]:
        """Compute a batch on the whole device."""
        all_cores = self._shared.all_cores
        return all_cores.run(self._run, items) if all_cores else self._run(items)

    def _run_part(self, items: list[torch.Tensor]) -> list[Embeddings]:
        """Compute a batch on one core of a CPU."""
        all_cores = self._shared.all_cores
        with all_cores.beside() if all_cores else nullcontext():
            return self._run(items)

    def _run(self, items: list[torch.Tensor]) -> list[Embeddings]:
        embeddings = self._tower.embed(items)
        self.answered = self._shared.timing.clock()
        return list(embeddings)

    def _warm_up(self) -> Iterator[tuple[int, int, float]]:
        """Run the tower's warm-up batches, and yield the count, size and duration of each.

        A batch that is too large for the device's memory is skipped with a warning.
        """
        clock = self._shared.timing.clock
        for items in self._tower.warm_batches():
            try:
                self._run_whole(items)  # compiles, records, allocates, starts threads
            except Exception as error:
                if not self._out_of_memory(error):
                    raise
                logger.warning(
                    "the device has too little memory for a batch of %d in the %s queue: "
                    "lower MAX_BATCH_SIZE",
                    len(items),
                    self.name,
                )
                continue
            started = clock()
            self._run_whole(items)
            yield len(items), sum(map(self._tower.size, items)), clock() - started
