"""CUDA graphs: what a batch's forward launches is recorded once, and replayed by one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

logger = logging.getLogger("vision_encoder")


def sizes(most: int) -> list[int]:
    """Return the sizes that batches of up to `most` items are padded to: 1, 2, 4 … `most`."""
    ladder = [n for i in range(most.bit_length()) for n in (2**i, 24 * 2**i)]
    return sorted({n for n in ladder if n < most} | {most})


class Graphs:
    """A forward that replays what it launched for the first batch of the same shape.

    A forward launches hundreds of kernels from Python, and each launch competes for the
    interpreter with the requests that are being answered. A batch, (n, …), is padded to the next
    of `sizes`, if there is one. A forward that cannot be recorded runs as it is.
    """

    def __init__(
        self, forward: Callable[[torch.Tensor], torch.Tensor], device: str, sizes: Sequence[int]
    ) -> None:
        self._forward = forward
        self._device = device
        self._sizes = sizes
        self._recorded: dict[torch.Size, tuple[torch.Tensor, Callable[[], torch.Tensor]]] = {}
        self._pool: Any = None  # of memory, that all recordings use in turn

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the forward of a batch; it is overwritten by the next of this shape."""
        size = next((size for size in self._sizes if size >= len(batch)), len(batch))
        shape = torch.Size((size, *batch.shape[1:]))
        if shape not in self._recorded:
            given = torch.zeros(shape, dtype=batch.dtype, device=self._device)
            try:
                self._recorded[shape] = given, self._record(given)
            except torch.OutOfMemoryError:
                self._recorded.clear()  # a smaller batch gets their memory
                self._pool = None
                raise
        given, replay = self._recorded[shape]
        given[: len(batch)].copy_(batch)
        return replay()[: len(batch)]

    def _record(self, given: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Return what computes the forward of `given` anew."""
        self._forward(given)  # compiles, chooses kernels, allocates
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(self._device)
        try:
            # other threads may use the GPU meanwhile
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                result = self._forward(given)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            logger.warning("this tower runs without CUDA graphs", exc_info=True)
            return lambda: self._forward(given)

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay
