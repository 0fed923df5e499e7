"""The two runners, text and image: from one request to its embedding."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeVar

from PIL import Image

from bento.batching import BatchQueue
from bento.errors import NotReady
from bento.model import Embeddings, Encoder, normalized

if TYPE_CHECKING:
    import torch

Prepared = TypeVar("Prepared")

HEALTH_SECONDS: Final = 5.0  # how long an answer of the device counts as a sign of life
HEALTH_TIMEOUT: Final = 10.0


class Runners:
    """One queue before each tower of an encoder; decoding happens per request, in threads.

    What can be wrong with one request is found before it joins a batch.
    """

    def __init__(self, encoder: Encoder, *, max_batch_size: int) -> None:
        self._encoder = encoder
        self._threads = ThreadPoolExecutor(os.cpu_count() or 2, "prepare")
        self._text = BatchQueue("text", self._run_texts, max_batch_size=max_batch_size)
        self._image = BatchQueue("image", self._run_images, max_batch_size=max_batch_size)
        self._answered = {"text": monotonic(), "image": monotonic()}
        self._probing = asyncio.Lock()
        self._checked = float("-inf")  # when the towers were last looked at
        self._trouble: NotReady | None = None  # and what was found

    async def embed_text(self, text: str, *, normalize: bool) -> Embeddings:
        """Return the embedding of a text, float32 (dim,)."""
        return await self._embed(
            self._text, lambda: self._encoder.tokenize([text])[0], normalize=normalize
        )

    async def embed_image(self, data: bytes | Image.Image, *, normalize: bool) -> Embeddings:
        """Return the embedding of a picture file's bytes, float32 (dim,).

        Raises what `decode_image` raises.
        """
        return await self._embed(
            self._image, lambda: self._encoder.preprocess(data), normalize=normalize
        )

    async def check(self) -> None:
        """Raise `NotReady` unless both towers have answered within the last seconds.

        A tower that served nothing lately is asked for an embedding. What was found, good
        or bad, holds for `HEALTH_SECONDS`, so that many who ask cost one forward.
        """
        async with self._probing:
            if monotonic() - self._checked >= HEALTH_SECONDS:
                self._trouble = await self._look()
                self._checked = monotonic()
            if self._trouble:
                raise self._trouble

    def close(self) -> None:
        """Finish what was accepted, then stop."""
        self._text.close()
        self._image.close()
        self._threads.shutdown()

    async def _embed(
        self,
        queue: BatchQueue[Prepared, Embeddings],
        prepare: Callable[[], Prepared],
        *,
        normalize: bool,
    ) -> Embeddings:
        loop = asyncio.get_running_loop()
        item = await loop.run_in_executor(self._threads, prepare)
        embedding = await asyncio.wrap_future(queue.submit(item))
        return normalized(embedding) if normalize else embedding

    async def _look(self) -> NotReady | None:
        for name in ("text", "image"):
            if monotonic() - self._answered[name] < HEALTH_SECONDS:
                continue
            try:
                await asyncio.wait_for(self._probe(name), HEALTH_TIMEOUT)
            except TimeoutError:
                return NotReady(f"the {name} tower has not answered for {HEALTH_TIMEOUT:.0f} s")
            except Exception as error:
                return NotReady(f"the {name} tower fails: {error}")
        return None

    async def _probe(self, name: str) -> None:
        if name == "text":
            await self.embed_text("health", normalize=False)
        else:
            await self.embed_image(Image.new("RGB", (32, 32)), normalize=False)

    def _run_texts(self, tokens: list[torch.Tensor]) -> list[Embeddings]:
        return self._run("text", self._encoder.text_embeddings, tokens)

    def _run_images(self, pixels: list[torch.Tensor]) -> list[Embeddings]:
        return self._run("image", self._encoder.image_embeddings, pixels)

    def _run(
        self, name: str, tower: Callable[[torch.Tensor], Embeddings], items: list[torch.Tensor]
    ) -> list[Embeddings]:
        import torch

        embeddings = tower(torch.stack(items))
        self._answered[name] = monotonic()
        return list(embeddings)
