"""One queue before one encoder tower: whatever waits goes as soon as the tower is free."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger("vision_encoder")


class BatchQueue(Generic[Item, Result]):
    """Gathers items into batches for a function that is faster on many than on one.

    A lone item is never held back: the thread takes what is queued, up to
    `max_batch_size`, runs it, and looks again. Batches grow because load does.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[list[Item]], Sequence[Result]],
        *,
        max_batch_size: int,
    ) -> None:
        self.name = name
        self._run = run
        self._max_batch_size = max_batch_size
        self._waiting: queue.SimpleQueue[tuple[Item, Future[Result]] | None] = queue.SimpleQueue()
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"runner-{name}", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> Future[Result]:
        """Queue one item. Cancelling the future before its batch starts drops the item."""
        future: Future[Result] = Future()
        with self._lock:
            if self._closing:
                raise RuntimeError(f"the {self.name} runner is closed")
            self._waiting.put((item, future))
        return future

    def close(self) -> None:
        """Finish what was accepted, then stop."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)

    def _next_batch(self) -> list[tuple[Item, Future[Result]]]:
        """Wait for an item and take all that are queued with it; empty when closed."""
        batch: list[tuple[Item, Future[Result]]] = []
        while True:
            entry = self._waiting.get()
            if entry is None:
                self._waiting.put(None)  # seen again once this batch is done
                return batch
            if entry[1].set_running_or_notify_cancel():
                batch.append(entry)
            if batch and (len(batch) == self._max_batch_size or self._waiting.empty()):
                return batch

    def _answer(self, batch: list[tuple[Item, Future[Result]]]) -> None:
        """Run a batch; one that fails is halved until the guilty item is alone."""
        try:
            results = self._run([item for item, _ in batch])
            answers = list(zip(batch, results, strict=True))
        except Exception as error:
            if len(batch) == 1:
                logger.exception("an item of the %s runner failed", self.name)
                batch[0][1].set_exception(error)
                return
            middle = len(batch) // 2
            self._answer(batch[:middle])
            self._answer(batch[middle:])
            return
        for (_, future), result in answers:
            future.set_result(result)
