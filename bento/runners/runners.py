"""Embed the texts and images of requests, with one runner for each tower."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from bento.contract.errors import Busy, EncoderError, NotReady
from bento.encoder.cpus import available_cpus, compute_on
from bento.encoder.embeddings import Embeddings, normalized
from bento.encoder.images import LARGE_PIXELS, load_image, open_image
from bento.encoder.model import Encoder
from bento.runners.admission import ByteBudget
from bento.runners.languages import LanguageWarning
from bento.runners.memory import trim
from bento.runners.observer import Observer
from bento.runners.policy import Limits
from bento.runners.pool import Pool
from bento.runners.runner import Runner, Shared
from bento.runners.timing import TIMING, Timing
from bento.settings import Settings

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("vision_encoder")

# The longest that an image batch may take, so that later items do not wait long.
IMAGE_BATCH_SECONDS: Final = 0.5
# How many ticks of the watchdog are between two trims. A trim takes 4 to 8 ms if pictures were
# decoded since the last one, and otherwise next to nothing.
TRIM_TICKS: Final = 5
# The niceness of per-core batches of images: HTTP and decoding go first, then what computes on all
# cores, which has 2.
IMAGE_NICE: Final = 5


class Runners:
    """A runner for each tower of an encoder.

    A request is validated and decoded before it joins a batch, so that a bad request does not
    fail others.

    Args:
        encoder: the towers.
        settings: MAX_BATCH_SIZE, MAX_QUEUE_MS and WORKERS.
        budget: limits the bytes of accepted items.
        metrics: receives the events of both runners.
        on_death: called with the reason if a tower or its queue fails for good.
        timing: the clock, and the time limits.
        large_pixels: pictures with more pixels are decoded one at a time.
        cpus: how many CPUs all workers may use; by default those that are available.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: Settings,
        *,
        budget: ByteBudget,
        metrics: Observer,
        on_death: Callable[[str], None],
        timing: Timing = TIMING,
        large_pixels: int = LARGE_PIXELS,
        cpus: int | None = None,
    ) -> None:
        self._encoder = encoder
        self._languages = LanguageWarning(encoder.model_name, encoder.pretrained)
        self._timing = timing
        self._large_pixels = large_pixels
        cpus = max(1, (cpus or available_cpus()) // settings.workers)
        # one thread per CPU, and each computes on one core
        self._threads = Pool("prepare", cpus, enter=partial(compute_on, 1))
        self.large = Pool("prepare-large", 1, enter=partial(compute_on, 1))
        count = settings.max_batch_size
        on_cpu = encoder.device == "cpu"
        all_cores = encoder.all_cores if on_cpu else None
        shared = Shared(
            settings, budget, metrics, self._threads, cpus, self.large, on_death, timing, all_cores
        )
        self.text = Runner(
            "text",
            encoder.text,
            shared,
            Limits(count),
            chunk=count,  # tokenizing takes so little that one thread does it for a whole batch
        )
        self.text.queue.wait_until_warm()  # so that the warm-ups do not run at the same time
        self.image = Runner(
            "image",
            encoder.image,
            shared,
            # on a CPU torch keeps memory for each batch size: about 20 MB for ViT-B-32
            Limits(count, IMAGE_BATCH_SECONDS, step=4 if on_cpu else 1, lanes=encoder.image.lanes),
            nice=IMAGE_NICE if on_cpu else 0,
        )
        self.image.queue.wait_until_warm()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        self._probing = asyncio.Lock()
        self._checked = float("-inf")  # when `check` last looked at the towers, and its result
        self._trouble: NotReady | None = None

    @property
    def alive(self) -> bool:
        return self.text.queue.alive and self.image.queue.alive

    async def embed_text(self, text: str, *, normalize: bool) -> Embeddings:
        """Return the embedding of a text, float32 (dim,).

        Raises `Busy` if the service sheds load.
        """
        self._languages.check(text)
        embedding = await self.text.embed(partial(self._encoder.text.prepare, text))
        return normalized(embedding) if normalize else embedding

    async def embed_image(self, data: bytes, *, normalize: bool) -> Embeddings:
        """Return the embedding of a picture file, float32 (dim,).

        Raises `Busy` if the service sheds load, and what `decode_image` raises.
        """
        embedding = await self.image.embed(partial(self._prepare_image, data))
        return normalized(embedding) if normalize else embedding

    async def embed_texts(self, texts: Sequence[str], *, normalize: bool) -> tuple[Embeddings, int]:
        """Return the embeddings of texts, float32 (n, dim), and the number of their tokens.

        Raises `Busy` if the service sheds load.
        """
        tower, seen = self._encoder.text, []

        def prepare(text: str) -> torch.Tensor:
            tokens = tower.prepare(text)
            seen.append(tower.count_tokens(tokens))
            return tokens

        embeddings = np.empty((len(texts), self._encoder.embedding_dim), np.float32)
        rows = await self.text.embed_all([partial(prepare, text) for text in texts])
        for i, row in enumerate(rows):
            if isinstance(row, BaseException):
                raise row
            embeddings[i] = row
        return normalized(embeddings) if normalize else embeddings, sum(seen)

    async def embed_images(
        self, images: Sequence[bytes], *, normalize: bool
    ) -> list[Embeddings | EncoderError]:
        """Return for each picture file its embedding, float32 (dim,), or its error.

        Raises `Busy` if the service sheds load.
        """
        rows = await self.image.embed_all([partial(self._prepare_image, data) for data in images])
        return [_answer(row, normalize=normalize) for row in rows]

    async def check(self) -> None:
        """Raise `NotReady` unless both towers are healthy.

        If a tower has been idle, this asks it for an embedding. The result is reused for
        `Timing.healthy`, so that many health checks cost one forward pass.
        """
        async with self._probing:
            if self._timing.clock() - self._checked >= self._timing.healthy:
                self._trouble = await self.text.look() or await self.image.look()
                self._checked = self._timing.clock()
            if self._trouble:
                raise self._trouble

    def _prepare_image(self, data: bytes) -> torch.Tensor | Callable[[], torch.Tensor]:
        image = open_image(data, **self._encoder.image_limits)

        def load() -> torch.Tensor:
            return self._encoder.image.prepare(load_image(image))

        return load if image.width * image.height > self._large_pixels else load()

    def close(self) -> None:
        """Drain both queues, then stop."""
        self.text.queue.close()
        self.image.queue.close()
        self._closed.set()
        self._threads.close()
        self.large.close()

    def _watch(self) -> None:
        """Run the watchdog for towers that hang, and trim the memory, until the runners close."""
        tick, ticks = self._timing.tick, 0
        while not self._closed.wait(tick):
            for runner in (self.text, self.image):
                runner.queue.tick(tick)
            ticks += 1
            if ticks % TRIM_TICKS == 0:
                trim()


def _answer(row: Embeddings | BaseException, *, normalize: bool) -> Embeddings | EncoderError:
    """Return the embedding of one item of a request, or an error for its client.

    Raises the error if it concerns the whole request.
    """
    if isinstance(row, NotReady | Busy) or not isinstance(row, Exception | np.ndarray):
        raise row
    if isinstance(row, EncoderError):
        return row
    if isinstance(row, Exception):
        logger.error("the service failed on an image", exc_info=row)
        return EncoderError("the service failed on this image; its log has the reason")
    return normalized(row) if normalize else row
