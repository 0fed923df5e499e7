"""The two runners, text and image: from one request to its embeddings."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

import numpy as np

from bento.admission import ByteBudget
from bento.batching import BatchQueue, Limits
from bento.cpus import available_cpus
from bento.errors import Busy, EncoderError, NotReady
from bento.images import load_image, open_image
from bento.metrics import Metrics, TowerMetrics
from bento.model import Embeddings, Encoder, normalized
from bento.settings import Settings

if TYPE_CHECKING:
    import torch

    from bento.towers import Tower

    # Gives a prepared item, or what remains to be done for a large one in a thread of its own.
    Preparation = Callable[[], torch.Tensor | Callable[[], torch.Tensor]]

HEALTH_SECONDS: Final = 5.0  # how long an answer of the device counts as a sign of life
HEALTH_TIMEOUT: Final = 10.0
# An image batch ends within this, as predicted, so that what comes next does not wait for long.
IMAGE_BATCH_SECONDS: Final = 0.5
# On a CPU images are computed at this priority: text queries, decoding and answering get most
# of the cores when they need them, and a bulk upload uses what they leave.
IMAGE_NICE: Final = 10
LARGE_PIXELS: Final = 16_000_000  # larger pictures are decoded one at a time


@dataclass(frozen=True)
class _Shared:
    """What both runners use."""

    settings: Settings
    budget: ByteBudget
    metrics: Metrics
    threads: ThreadPoolExecutor  # as many as CPUs
    cpus: int
    large: ThreadPoolExecutor  # one
    on_death: Callable[[str], None]


class Runner:
    """One tower and its queue: admission, preparation in threads, batches on the device."""

    def __init__(
        self, name: str, tower: Tower, shared: _Shared, limits: Limits, *, nice: int = 0
    ) -> None:
        from bento.towers import device_lost, out_of_memory

        self.name = name
        self.answered = monotonic()
        self._tower = tower
        self._shared = shared
        self.metrics = TowerMetrics(shared.metrics, name)
        self._accepted = 0  # items that are not yet answered
        self._window = 2 * limits.count  # of one request's items that are worked on at a time
        self._item_bytes = int(tower.probe()[0].nbytes)
        self._prepare_seconds = 0.0  # of an item, as of late
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
            nice=nice,
        )

    async def embed(self, preparation: Preparation) -> Embeddings:
        """Return the raw embedding of one item, float32 (dim,).

        Raises `Busy` before anything is prepared, and what the preparation raises.
        """
        with self._accept(1):
            return await self._embed(preparation)

    async def embed_all(
        self, preparations: Sequence[Preparation]
    ) -> list[Embeddings | BaseException]:
        """Return the raw embedding of each item, or what went wrong with it.

        Raises `Busy` for all of them before anything is prepared. Of a large request a part is
        worked on at a time, so that others get their turn in between.
        """
        window = asyncio.Semaphore(self._window)

        async def embed(preparation: Preparation) -> Embeddings:
            async with window:
                return await self._embed(preparation)

        with self._accept(min(len(preparations), self._window)):
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
    def _accept(self, count: int) -> Iterator[None]:
        """Count items in until the block ends. Raises `Busy` when too much is before them."""
        wait = max(
            self.queue.predicted_seconds(self._accepted),
            self._accepted * self._prepare_seconds / self._shared.cpus,
        )
        limit = self._shared.settings.max_queue_ms / 1000
        if wait > limit:
            self._shared.metrics.rejected.labels("queue").inc()
            raise Busy(
                f"{self._accepted} {self.name} items are before yours, about {wait:.1f} s of work "
                f"where {limit:g} s are allowed: try again later",
                retry_after=math.ceil(wait - limit),
            )
        with self._shared.budget.hold(count * self._item_bytes):
            self._change_accepted(count)
            try:
                yield
            finally:
                self._change_accepted(-count)

    def _change_accepted(self, count: int) -> None:
        self._accepted += count
        self.metrics.length.set(self._accepted)

    async def _embed(self, preparation: Preparation) -> Embeddings:
        loop = asyncio.get_running_loop()
        item = await loop.run_in_executor(self._shared.threads, self._timed, preparation)
        if callable(item):
            item = await loop.run_in_executor(self._shared.large, item)
        return await asyncio.wrap_future(self.queue.submit(item))

    def _timed(self, preparation: Preparation) -> torch.Tensor | Callable[[], torch.Tensor]:
        started = monotonic()
        item = preparation()
        seconds = monotonic() - started
        self._prepare_seconds += 0.1 * (seconds - self._prepare_seconds)
        self.metrics.decoded(seconds)
        return item

    def _run(self, items: list[torch.Tensor]) -> list[Embeddings]:
        embeddings = self._tower.embed(items)
        self.answered = monotonic()
        return list(embeddings)

    def _warm_up(self) -> Iterator[tuple[int, int, float]]:
        """Run the batches that the tower asks for, in the thread that will run all others."""
        probe = self._tower.probe()
        for count in self._tower.warm_sizes:
            items = [probe[i % len(probe)] for i in range(count)]
            self._tower.embed(items)  # compiles, allocates, starts threads
            started = monotonic()
            self._tower.embed(items)
            yield count, sum(map(self._tower.size, items)), monotonic() - started


class Runners:
    """A runner for each tower of an encoder.

    What can be wrong with one request is found before it joins a batch. `on_death` is called
    with the reason when a runner can answer nothing more.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: Settings,
        *,
        budget: ByteBudget,
        metrics: Metrics,
        on_death: Callable[[str], None],
    ) -> None:
        self._encoder = encoder
        cpus = available_cpus()
        self._threads = ThreadPoolExecutor(cpus, "prepare")
        self._large = ThreadPoolExecutor(1, "prepare-large")
        shared = _Shared(settings, budget, metrics, self._threads, cpus, self._large, on_death)
        count = settings.max_batch_size
        self.text = Runner("text", encoder.text, shared, Limits(count))
        self.image = Runner(
            "image",
            encoder.image,
            shared,
            Limits(count, IMAGE_BATCH_SECONDS),
            nice=IMAGE_NICE if encoder.device == "cpu" else 0,
        )
        for runner in (self.text, self.image):
            runner.queue.wait_until_warm()
        self._probing = asyncio.Lock()
        self._checked = float("-inf")  # when the towers were last looked at
        self._trouble: NotReady | None = None  # and what was found

    @property
    def alive(self) -> bool:
        return self.text.queue.alive and self.image.queue.alive

    async def embed_text(self, text: str, *, normalize: bool) -> Embeddings:
        """Return the embedding of a text, float32 (dim,). Raises `Busy`."""
        embedding = await self.text.embed(partial(self._encoder.text.prepare, text))
        return normalized(embedding) if normalize else embedding

    async def embed_image(self, data: bytes, *, normalize: bool) -> Embeddings:
        """Return the embedding of a picture file's bytes, float32 (dim,).

        Raises `Busy`, and what `decode_image` raises.
        """
        embedding = await self.image.embed(partial(self._prepare_image, data))
        return normalized(embedding) if normalize else embedding

    async def embed_texts(self, texts: Sequence[str], *, normalize: bool) -> Embeddings:
        """Return the embeddings of texts, float32 (n, dim). Raises `Busy`."""
        prepare = self._encoder.text.prepare
        rows = await self.text.embed_all([partial(prepare, text) for text in texts])
        for row in rows:
            if isinstance(row, BaseException):
                raise row
        embeddings = np.stack([row for row in rows if not isinstance(row, BaseException)])
        return normalized(embeddings) if normalize else embeddings

    async def embed_images(
        self, images: Sequence[bytes], *, normalize: bool
    ) -> list[Embeddings | EncoderError]:
        """Return for each picture file its embedding, float32 (dim,), or what is wrong with it.

        Raises `Busy`.
        """
        rows = await self.image.embed_all([partial(self._prepare_image, data) for data in images])
        return [_answer(row, normalize=normalize) for row in rows]

    async def check(self) -> None:
        """Raise `NotReady` unless both towers have answered within the last seconds.

        A tower that served nothing lately is asked for an embedding. What was found, good
        or bad, holds for `HEALTH_SECONDS`, so that many who ask cost one forward.
        """
        async with self._probing:
            if monotonic() - self._checked >= HEALTH_SECONDS:
                self._trouble = await self.text.look() or await self.image.look()
                self._checked = monotonic()
            if self._trouble:
                raise self._trouble

    def _prepare_image(self, data: bytes) -> torch.Tensor | Callable[[], torch.Tensor]:
        image = open_image(data, **self._encoder.image_limits)

        def load() -> torch.Tensor:
            return self._encoder.image.prepare(load_image(image))

        return load if image.width * image.height > LARGE_PIXELS else load()

    def close(self) -> None:
        """Finish what was accepted, then stop."""
        self.text.queue.close()
        self.image.queue.close()
        self._threads.shutdown()
        self._large.shutdown()


def _answer(row: Embeddings | BaseException, *, normalize: bool) -> Embeddings | EncoderError:
    """Return what an item of many gets: its embedding, or an error to be told."""
    if isinstance(row, NotReady) or not isinstance(row, Exception | np.ndarray):
        raise row  # nobody's item can be answered
    if isinstance(row, EncoderError):
        return row
    if isinstance(row, Exception):
        return EncoderError("this item failed on the device; the service's log has the reason")
    return normalized(row) if normalize else row
