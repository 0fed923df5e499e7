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

    # a preparation returns a prepared item, or the work for it if that needs the large thread
    Work = Callable[[], torch.Tensor]
    Preparation = Callable[[], torch.Tensor | Work]

Prepared = TypeVar("Prepared")

logger = logging.getLogger("vision_encoder")

HEALTH_SECONDS: Final = 5.0  # a tower is healthy for so long after an answer
HEALTH_TIMEOUT: Final = 10.0  # seconds that a health check waits for an answer


@dataclass(frozen=True)
class Shared:
    """What both runners share."""

    settings: Settings
    budget: ByteBudget
    metrics: Observer
    threads: ThreadPoolExecutor  # one per CPU
    cpus: int
    large: ThreadPoolExecutor  # one thread, for large pictures
    on_death: Callable[[str], None]


class Runner:
    """One tower and its queue: admission, preparation in threads, batches on the device."""

    def __init__(
        self, name: str, tower: Tower, shared: Shared, limits: Limits, *, nice: int = 0
    ) -> None:
        from bento.encoder.tower import device_lost, out_of_memory

        self.name = name
        self.answered = monotonic()  # when the tower last computed a batch
        self._tower = tower
        self._out_of_memory = out_of_memory
        self._shared = shared
        self.metrics = shared.metrics.tower(name)
        self._accepted = 0  # items that are accepted and not yet answered
        self._window = 2 * limits.count  # how many items of a request are at work at the same time
        self._item_bytes = int(tower.probe()[0].nbytes)
        self._prepare_seconds = 0.0  # of one core per item, a moving average
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
        """Return the embedding of one item before normalization, float32 (dim,).

        Raises `Busy` if admission control rejects the item, or if the queue sheds it later because
        it would miss its deadline. Raises what the preparation raises.
        """
        with self._accept(1) as deadline:
            return await self._embed(preparation, deadline)

    async def embed_all(
        self, preparations: Sequence[Preparation]
    ) -> list[Embeddings | BaseException]:
        """Return the embedding of each item before normalization, or its error.

        Raises `Busy` if admission control rejects the request. Several accepted items have no
        deadline; a single item has one, as in `embed`. Only a part of a large request is at work
        at the same time, so that other requests get their turn in between.
        """
        if not preparations:
            return []  # admission control never rejects an empty request
        window = asyncio.Semaphore(self._window)

        async def embed(preparation: Preparation) -> Embeddings:
            async with window:
                return await self._embed(preparation, deadline)

        with self._accept(min(len(preparations), self._window)) as deadline:
            return await asyncio.gather(*map(embed, preparations), return_exceptions=True)

    async def look(self) -> NotReady | None:
        """Return why the tower is unhealthy, or `None` if it is healthy.

        If it computed nothing lately, this asks it for an embedding.
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
        """Admit items until the block ends, and yield their deadline.

        Raises `Busy` if the queue is not empty and the predicted wait exceeds MAX_QUEUE_MS, or if
        the byte budget is used up. Several items have no deadline, so that none of them is shed.
        """
        before, deadline = self._accepted, math.inf
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
            deadline = monotonic() + limit
        with self._shared.budget.hold(count * self._item_bytes):
            self._change_accepted(count)
            try:
                yield deadline
            finally:
                self._change_accepted(-count)

    def _change_accepted(self, count: int) -> None:
        self._accepted += count
        self.metrics.accepted(self._accepted)

    async def _embed(self, preparation: Preparation, deadline: float) -> Embeddings:
        loop, shared = asyncio.get_running_loop(), self._shared
        item = await loop.run_in_executor(shared.threads, self._prepare, preparation, deadline)
        if callable(item):  # large pictures are decoded one at a time: count it on all cores
            item = await loop.run_in_executor(
                shared.large, self._prepare, item, deadline, shared.cpus
            )
        return await asyncio.wrap_future(self.queue.submit(item, deadline=deadline))

    def _prepare(self, step: Callable[[], Prepared], deadline: float, cores: int = 1) -> Prepared:
        """Run one step of a preparation. Raises `Busy` if the deadline has passed.

        Only the step that returns the item counts as its preparation time, because reading a
        header takes hardly any.
        """
        started = monotonic()
        if started > deadline:
            self.metrics.late()
            raise Busy(f"the {self.name} items before yours took too long: try again later")
        item = step()
        if not callable(item):
            seconds = monotonic() - started
            self._prepare_seconds += 0.1 * (seconds * cores - self._prepare_seconds)
            self.metrics.decoded(seconds)
        return item

    def _enter(self, nice: int, shares: int) -> None:
        """Set the priority of a thread of the queue, and its cores: all of them, or one."""
        give_way(nice)
        compute_on(self._shared.cpus if shares == 1 else 1)

    def _run(self, items: list[torch.Tensor]) -> list[Embeddings]:
        embeddings = self._tower.embed(items)
        self.answered = monotonic()
        return list(embeddings)

    def _warm_up(self) -> Iterator[tuple[int, int, float]]:
        """Run the tower's warm-up batches; yield count, size and seconds of each.

        A batch that is too large for the device's memory is skipped with a warning.
        """
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
