"""Fakes for the tests of the runners: towers that can fail, hang and die."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from bento import Settings
from bento.runners.admission import ByteBudget
from bento.runners.runners import Runners
from bento.web.metrics import Metrics
from tests.support.pictures import file_bytes

T = TypeVar("T")


class Tower:
    """A tower that raises `fails` if it is set, and blocks while not `free`."""

    lanes = 1

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.prepared = 0
        self.cores: set[tuple[str, int]] = set()  # threads, and how many cores they compute on
        self.fails: BaseException | None = None
        self.free = threading.Event()
        self.free.set()

    def probe(self) -> list[torch.Tensor]:
        return [torch.zeros(10, dtype=torch.uint8)]

    def warm_batches(self) -> list[list[torch.Tensor]]:
        return []

    def size(self, item: torch.Tensor) -> int:
        return 1

    def prepare(self, given: Any) -> torch.Tensor:
        self.prepared += 1
        self.cores.add((threading.current_thread().name, torch.get_num_threads()))
        return torch.tensor([len(given) if isinstance(given, str) else given.width])

    def count_tokens(self, item: torch.Tensor) -> int:
        return int(item[0])

    def embed(self, items: list[torch.Tensor]) -> Any:
        self.batches.append(len(items))
        self.cores.add((threading.current_thread().name, torch.get_num_threads()))
        assert self.free.wait(10)
        if self.fails:
            raise self.fails
        return np.array([[3.0 * int(n[0]), 4.0 * int(n[0])] for n in items], np.float32)


class Here:
    """Runs calls in the calling thread, so that one tower can wait while the other computes."""

    def run(self, call: Callable[..., T], *args: Any) -> T:
        return call(*args)

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()


class Towers:
    """An encoder of two fake towers, with the metrics and the byte budget of its runners."""

    def __init__(self) -> None:
        self.text, self.image = Tower(), Tower()
        self.model_name, self.pretrained = "local-dir:model", "local"
        self.device = "cpu"
        self.all_cores: Any = Here()
        self.embedding_dim = 2
        self.image_limits = {"max_bytes": 10**6, "max_pixels": 10**8}
        self.deaths: list[str] = []
        self.metrics = Metrics(workers=1)
        self.rejections: list[None] = []
        self.budget = ByteBudget(1000, lambda: self.rejections.append(None))

    def runners(
        self, *, max_batch_size: int = 8, max_queue_ms: int = 10_000, **options: Any
    ) -> Runners:
        return Runners(
            self,  # type: ignore[arg-type]
            Settings(max_batch_size=max_batch_size, max_queue_ms=max_queue_ms),
            budget=self.budget,
            metrics=self.metrics,
            on_death=self.deaths.append,
            **options,
        )

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric in the exposition that Prometheus reads."""
        inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        start = f"vision_encoder_{name}" + (f"{{{inner}}} " if labels else " ")
        for line in self.metrics.exposition().decode().splitlines():
            if line.startswith(start):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"there is no metric {start}")


def picture(width: int) -> bytes:
    return file_bytes(Image.new("RGB", (width, 2)))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
