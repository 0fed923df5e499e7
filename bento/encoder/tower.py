"""The interface of both towers, their CUDA streams, and the errors of their device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from bento.encoder.embeddings import Embeddings
from bento.encoder.kernels.graphs import Graphs


class Tower(Protocol):
    """One of the encoder's two networks, on its device."""

    module: Any
    dtype: str

    def use(self, module: Any, dtype: str) -> None:
        """Replace the module of the tower. The weights of the new one have this dtype."""

    def warm_batches(self) -> Iterator[list[torch.Tensor]]:
        """Yield batches to run before the first request, so that no request waits for setup."""

    def probe(self) -> list[torch.Tensor]:
        """Return prepared items that resemble real requests."""

    def size(self, item: torch.Tensor) -> int:
        """Return the cost of a prepared item. The cost of a batch is the sum of its sizes."""

    def embed(self, items: Sequence[torch.Tensor]) -> Embeddings:
        """Return the embeddings of prepared items before normalization, float32 (n, dim)."""


def graphs_on(
    device: str, forward: Callable[[torch.Tensor], torch.Tensor], sizes: Sequence[int]
) -> Graphs | None:
    """Return the CUDA graphs of a forward pass, or `None` on a CPU."""
    if device == "cpu":
        return None
    torch.cuda.synchronize(device)  # the weights were copied and cast on another stream
    return Graphs(forward, device, sizes)


def stream_on(device: str, *, priority: int) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that makes contexts in which work goes to a new CUDA stream.

    On a CPU these contexts do nothing.
    """
    if device == "cpu":
        return nullcontext
    stream = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
    return lambda: torch.cuda.stream(stream)


def out_of_memory(error: Exception) -> bool:
    """Say whether a batch exceeded the memory. If so, free torch's cache of GPU memory."""
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return True
    return isinstance(error, MemoryError) or "not enough memory" in str(error)


def device_lost(error: Exception) -> bool:
    """Say whether an error means that every later CUDA call of the process fails."""
    return isinstance(error, torch.AcceleratorError)
