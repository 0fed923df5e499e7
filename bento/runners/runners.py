"""The two runners, text and image: from one request to its embeddings."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

import numpy as np

from bento.contract.errors import Busy, EncoderError, NotReady
from bento.encoder.cpus import available_cpus, compute_on
from bento.encoder.embeddings import Embeddings, normalized
from bento.encoder.images import LARGE_PIXELS, load_image, open_image
from bento.encoder.model import Encoder
from bento.runners.admission import ByteBudget
from bento.runners.observer import Observer
from bento.runners.policy import Limits
from bento.runners.runner import HEALTH_SECONDS, Runner, Shared
from bento.settings import Settings

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("vision_encoder")

# An image batch ends within these, so that what comes next does not wait for long.
IMAGE_BATCH_SECONDS: Final = 0.5
# On a CPU the towers compute at these priorities: decoding and answering come first, then text,
# and images get what is left, which is never nothing.
TEXT_NICE: Final = 2
IMAGE_NICE: Final = 5
TICK_SECONDS: Final = 1.0


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
        metrics: Observer,
        on_death: Callable[[str], None],
    ) -> None:
        self._encoder = encoder
        cpus = max(1, available_cpus() // settings.workers)
        # each computes alone: there are as many as cores
        self._threads = ThreadPoolExecutor(cpus, "prepare", compute_on, (1,))
        self._large = ThreadPoolExecutor(1, "prepare-large", compute_on, (1,))
        shared = Shared(settings, budget, metrics, self._threads, cpus, self._large, on_death)
        count = settings.max_batch_size
        on_cpu = encoder.device == "cpu"
        self.text = Runner(
            "text",
            encoder.text,
            shared,
            Limits(count, lanes=encoder.text.lanes),
            nice=TEXT_NICE if on_cpu else 0,
        )
        self.text.queue.wait_until_warm()  # before the other: neither is to slow what is measured
        self.image = Runner(
            "image",
            encoder.image,
            shared,
            # on a CPU each size that a batch has had keeps memory, about 20 MB of a ViT-B-32's
            Limits(count, IMAGE_BATCH_SECONDS, step=4 if on_cpu else 1, lanes=encoder.image.lanes),
            nice=IMAGE_NICE if on_cpu else 0,
        )
        self.image.queue.wait_until_warm()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
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

    async def embed_texts(self, texts: Sequence[str], *, normalize: bool) -> tuple[Embeddings, int]:
        """Return the embeddings of texts, float32 (n, dim), and how many tokens were seen.

        Raises `Busy`.
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
        self._closed.set()
        self._threads.shutdown()
        self._large.shutdown()

    def _watch(self) -> None:
        """Look whether a tower hangs, until the runners are closed."""
        while not self._closed.wait(TICK_SECONDS):
            for runner in (self.text, self.image):
                runner.queue.tick(TICK_SECONDS)


def _answer(row: Embeddings | BaseException, *, normalize: bool) -> Embeddings | EncoderError:
    """Return what an item of many gets: its embedding, or an error to be told."""
    if isinstance(row, NotReady | Busy) or not isinstance(row, Exception | np.ndarray):
        raise row  # it is not about this item
    if isinstance(row, EncoderError):
        return row
    if isinstance(row, Exception):
        logger.error("an image failed", exc_info=row)
        return EncoderError("this image failed in the service; its log has the reason")
    return normalized(row) if normalize else row
