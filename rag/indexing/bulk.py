"""Index many pictures on threads, in batches, with a bounded number of batches ahead."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from threading import Event
from typing import TypeVar

from bento.contract.errors import InvalidSearch, VisionError
from bento.contract.halving import Halving
from bento.contract.images import Outcome
from rag.indexing.backends import Backend
from rag.indexing.retrying import Sleep, attempt
from rag.pictures.index import Picture

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[str, int, int, str], None]  # activity, number done, total, note


def index_each(
    picture: Callable[[T], Picture],
    items: Sequence[T],
    backend: Backend,
    collection: str,
    workers: int,
    stop: Event,
    *,
    sleep: Sleep,
    staged: bool = False,
) -> Iterator[tuple[T, Outcome | VisionError]]:
    """Index the pictures of items, `workers` at a time; yield each item with its outcome.

    `picture` loads the picture of an item. The outcome is an error if `picture` raises
    `InvalidSearch`, or if the backend rejects the picture. Raises an error that would stop the
    other pictures, too, such as an unreachable service.
    """
    size = min(backend.batch, workers)
    target = partial(backend.index, collection=collection, staged=staged)

    def index(batch: Sequence[T]) -> list[Outcome | VisionError]:
        pictures = [_loaded(picture, item) for item in batch]
        usable = [one for one in pictures if isinstance(one, Picture)]
        done = iter(_index(usable, target, sleep))
        return [next(done) if isinstance(one, Picture) else one for one in pictures]

    batches = [items[i : i + size] for i in range(0, len(items), size)]
    for batch, result in each(index, batches, workers // size, stop):
        yield from zip(batch, result.result(), strict=True)


def each(
    call: Callable[[T], R], items: Iterable[T], workers: int, stop: Event
) -> Generator[tuple[T, Future[R]]]:
    """Call `call` with each item on threads; yield each item and its future when it is done.

    At most `2 * workers` calls are queued or running. If the caller stops early, `stop` is set,
    which wakes the threads that pause.
    """
    under_way: dict[Future[R], T] = {}
    finished: SimpleQueue[Future[R]] = SimpleQueue()  # `wait` would scan all futures each time
    waiting = iter(items)
    with ThreadPoolExecutor(workers) as threads:
        try:
            while True:
                for item in waiting:
                    future = threads.submit(call, item)
                    under_way[future] = item
                    future.add_done_callback(finished.put)
                    if len(under_way) >= 2 * workers:
                        break
                if not under_way:
                    return
                done = finished.get()
                yield under_way.pop(done), done
        except BaseException:
            stop.set()
            for future in under_way:
                future.cancel()
            raise


def _loaded(picture: Callable[[T], Picture], item: T) -> Picture | InvalidSearch:
    try:
        return picture(item)
    except InvalidSearch as error:
        return error


def _index(
    pictures: Sequence[Picture],
    index: Callable[[Sequence[Picture]], list[Outcome]],
    sleep: Sleep,
) -> list[Outcome | VisionError]:
    """Index pictures; retry a rejected batch in halves, so that only the bad pictures fail."""
    done: list[Outcome | VisionError] = []
    for part in (parts := Halving(pictures)):
        outcome = attempt(partial(index, part), sleep)
        if not isinstance(outcome, VisionError):
            done += outcome
        elif not parts.halve():
            done.append(outcome)
    return done
