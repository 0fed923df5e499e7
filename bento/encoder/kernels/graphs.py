"""CUDA graphs: record the kernels of a forward pass once, and replay them with one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

logger = logging.getLogger("vision_encoder")


def sizes(most: int) -> list[int]:
    """Return the sizes to which batches of at most `most` items are padded: 1, 2, 4 … `most`."""
    ladder = [n for i in range(most.bit_length()) for n in (2**i, 24 * 2**i)]
    return sorted({n for n in ladder if n < most} | {most})


class Graphs:
    """Runs a forward pass by replaying the CUDA graph of the first batch of the same shape.

    A forward pass launches hundreds of kernels from Python, and each launch competes for the
    interpreter with the threads that answer requests. A replay is one launch. A batch (n, …) is
    padded to the next of `sizes`; a larger batch keeps its size. A forward pass that cannot be
    recorded runs without a graph.
    """

    def __init__(
        self, forward: Callable[[torch.Tensor], torch.Tensor], device: str, sizes: Sequence[int]
    ) -> None:
        self.forward = forward
        self._device = device
        self._sizes = sizes
        self._recorded: dict[torch.Size, tuple[torch.Tensor, Callable[[], torch.Tensor]]] = {}
        self._pool: Any = None  # the memory pool that all graphs share

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the output for a batch. The next call with this shape overwrites it."""
        size = next((size for size in self._sizes if size >= len(batch)), len(batch))
        shape = torch.Size((size, *batch.shape[1:]))
        if shape not in self._recorded:
            given = torch.zeros(shape, dtype=batch.dtype, device=self._device)
            try:
                self._recorded[shape] = given, self.record(given)
            except torch.OutOfMemoryError:
                self._recorded.clear()  # frees memory for a smaller batch
                self._pool = None
                raise
        given, replay = self._recorded[shape]
        given[: len(batch)].copy_(batch)
        return replay()[: len(batch)]

    def record(self, given: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Return a function that repeats the forward pass on the current content of `given`."""
        self.forward(given)  # compiles, chooses kernels, allocates
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(self._device)
        try:
            # with `thread_local`, other threads may use the GPU meanwhile
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                result = self.forward(given)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            logger.warning(
                "batches of shape %s run without a CUDA graph, because it cannot be recorded",
                tuple(given.shape),
                exc_info=True,
            )
            return lambda: self.forward(given)

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay
