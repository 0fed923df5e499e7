"""Indexing files: look at what is there and what is held, and carry out the plan.

The collection is its own ledger (decision 0003): nothing else remembers what was indexed. What is
new is written before anything old is taken away, so that a run that is killed loses nothing, and
the next one goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import file_digest
from io import BufferedReader
from queue import SimpleQueue
from stat import S_ISREG
from threading import Event
from typing import Final, TypeVar

from bento.contract.errors import InvalidSearch
from bento.contract.images import IndexedImage, Outcome
from rag.indexing.backends import Backend
from rag.indexing.plan import Loss, Plan, Wanted, metadata_at, paths_of
from rag.indexing.sources import Failure, Source, Sources
from rag.pictures.index import Picture

PATIENCE: Final = 60.0  # seconds that a busy service is waited for
LARGEST_FILE: Final = 100_000_000  # bytes; services take 20 MB unless told otherwise
_PICTURES_FAULT: Final = frozenset({400, 413, 415, 422})  # an error's status, local or remote
_LONGEST_WAIT: Final = 15.0  # seconds
# the codes of what may be over in a minute
_PASSING: Final = frozenset(
    {"not_ready", "unreachable", "connection_cut", "timeout", "store_unavailable"}
)

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[str, int, int, str], None]  # what is being done, done, total, and a note
Sleep = Callable[[float], object]


@dataclass
class Report:
    """What a run did."""

    indexed: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: int = 0
    forgotten: int = 0
    failures: list[Failure] = field(default_factory=list)


def hold(backend: Backend, collection: str, dao_id: str) -> list[IndexedImage]:
    """Return what a collection holds of a tenant; nothing when there is no collection yet."""
    try:
        return list(backend.images(collection, dao_id=dao_id))
    except Exception as error:
        if getattr(error, "code", None) != "collection_not_found":
            raise
        return []


def hash_sources(
    sources: Sources, workers: int, progress: Progress
) -> tuple[list[tuple[Source, str]], list[Failure]]:
    """Return each source that can be read with its SHA-256, and those that cannot."""
    hashed: dict[int, tuple[Source, str]] = {}  # by where they were given
    failures: list[Failure] = []
    given = sources.pictures
    looked = each(lambda place: _hash(given[place]), range(len(given)), workers, Event())
    for done, (place, result) in enumerate(looked, 1):
        try:
            hashed[place] = (given[place], result.result())
        except InvalidSearch as error:
            failures.append(Failure(given[place].path, str(error)))
        progress("looking", done, len(given), f"{len(failures)} failed")
    in_order = [hashed[place] for place in sorted(hashed)]
    in_order.sort(key=lambda item: item[0].path)
    failures.sort(key=lambda failure: failure.path)
    return in_order, failures


def carry_out(
    plan: Plan, backend: Backend, collection: str, dao_id: str, workers: int, progress: Progress
) -> Report:
    """Do what a plan says.

    Raises what concerns more than one picture: the next ones would fail alike, and running
    again goes on.
    """
    report = Report(unchanged=plan.unchanged, duplicates=plan.duplicates)
    failed: set[str] = set()
    stop = Event()
    finished = 0
    # what is new first: a run that is killed in between takes no path from where it was
    new = [one for one in plan.add if not one.held]
    known = [one for one in plan.add if one.held]

    def pause(seconds: float) -> bool:
        progress(
            "indexing",
            finished,
            len(plan.add),
            "waiting: the service is busy, or its store is away",
        )
        return stop.wait(seconds)

    def add(wanted: Sequence[Wanted]) -> Iterator[tuple[Wanted, Outcome | Exception]]:
        picture = partial(_picture, dao_id=dao_id)
        return index_each(picture, wanted, backend, collection, workers, stop, sleep=pause)

    def update(one: Wanted) -> bool | Exception:
        there = partial(backend.update, one.image_id, dao_id, collection)
        return _attempt(partial(there, paths=one.paths, metadata=one.metadata), pause)

    def outcomes() -> Iterator[tuple[Wanted, Outcome | Exception]]:
        yield from add(new)
        gone = []  # that somebody else has deleted since they were looked at
        for one, result in each(update, known, workers, stop):
            updated = result.result()
            if updated is False:
                gone.append(one)
            else:
                yield one, "updated" if updated is True else updated
        yield from add(gone)

    for one, outcome in outcomes():
        if isinstance(outcome, Exception):
            report.failures += [Failure(path, str(outcome)) for path in one.paths]
            failed.update(one.paths)
        report.indexed += outcome == "indexed"
        report.updated += outcome == "updated"
        report.unchanged += outcome == "unchanged"
        finished += 1
        note = f"{report.unchanged} unchanged, {len(report.failures)} failed"
        progress("indexing", finished, len(plan.add), note)
    for loss in plan.lose:
        # a file that cannot be indexed as it is now stays findable as it was
        kept = tuple(path for path in _lost(loss) if path in failed)
        report.forgotten += patiently(partial(lose, loss, backend, collection, kept))
    return report


def lose(loss: Loss, backend: Backend, collection: str, kept: tuple[str, ...] = ()) -> bool:
    """Take paths from a held picture, but for `kept`; say whether it was forgotten."""
    image = loss.image
    paths = sorted({*loss.left, *kept})
    if not paths:
        return backend.delete(image.id, image.dao_id, collection)
    metadata = metadata_at(image, paths[0])
    backend.update(image.id, image.dao_id, collection, paths=paths, metadata=metadata)
    return False


def patiently(call: Callable[[], R], *, sleep: Sleep = time.sleep) -> R:
    """Make a call, again while the service or its store is busy, starting or away.

    About a minute at most.

    `sleep` may return true to give up at once.
    """
    waited, next_wait = 0.0, 1.0
    while True:
        try:
            return call()
        except Exception as error:
            if not _passes(error) or waited >= PATIENCE:
                raise
            asked = float(getattr(error, "retry_after", None) or 0)
            seconds = min(max(asked, next_wait), _LONGEST_WAIT)
            if sleep(seconds):
                raise
            waited, next_wait = waited + seconds, next_wait * 2


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
) -> Iterator[tuple[T, Outcome | Exception]]:
    """Index the pictures of items, in batches on threads; yield each item with what became of it.

    That is an exception where its picture cannot be had or used. Raises what concerns more than
    one. `workers` pictures are under way at once.
    """
    size = min(backend.batch, workers)
    target = partial(backend.index, collection=collection, staged=staged)

    def index(batch: Sequence[T]) -> list[Outcome | Exception]:
        pictures = [_had(picture, item) for item in batch]
        usable = [one for one in pictures if isinstance(one, Picture)]
        done = iter(_index(usable, target, sleep))
        return [next(done) if isinstance(one, Picture) else one for one in pictures]

    batches = [items[i : i + size] for i in range(0, len(items), size)]
    for batch, result in each(index, batches, workers // size, stop):
        yield from zip(batch, result.result(), strict=True)


def read(path: str) -> bytes:
    """Return a file's bytes. Raises `InvalidSearch`."""
    with _opened(path) as file:
        return file.read()


def each(
    call: Callable[[T], R], items: Iterable[T], workers: int, stop: Event
) -> Iterator[tuple[T, Future[R]]]:
    """Call for each item on threads, a bounded number ahead, and yield each when it is done.

    When the caller goes no further before the end, `stop` is set, for what waits on those threads.
    """
    under_way: dict[Future[R], T] = {}
    finished: SimpleQueue[Future[R]] = SimpleQueue()  # `wait` would look at all of them each time
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


def _had(picture: Callable[[T], Picture], item: T) -> Picture | InvalidSearch:
    try:
        return picture(item)
    except InvalidSearch as error:
        return error


def _index(
    pictures: Sequence[Picture],
    index: Callable[[Sequence[Picture]], list[Outcome]],
    sleep: Sleep,
) -> list[Outcome | Exception]:
    """Index pictures; of those that cannot all be, each half, until the guilty one is alone."""
    if not pictures:
        return []
    done = _attempt(partial(index, pictures), sleep)
    if not isinstance(done, Exception):
        return [*done]
    if len(pictures) == 1:
        return [done]
    half = len(pictures) // 2
    return _index(pictures[:half], index, sleep) + _index(pictures[half:], index, sleep)


def _attempt(call: Callable[[], R], sleep: Sleep) -> R | Exception:
    """Make a call, patiently, and return what it does, or what is wrong with its pictures."""
    try:
        return patiently(call, sleep=sleep)
    except Exception as error:
        if getattr(error, "status", None) not in _PICTURES_FAULT:
            raise
        return error


def _passes(error: Exception) -> bool:
    return getattr(error, "status", None) == 429 or getattr(error, "code", None) in _PASSING


def _lost(loss: Loss) -> tuple[str, ...]:
    return tuple(path for path in paths_of(loss.image) if path not in loss.left)


def _picture(one: Wanted, dao_id: str) -> Picture:
    """Return a picture with the bytes of its file. Raises `InvalidSearch`."""
    data = read(one.source)
    picture = Picture(one.image_id, data, one.paths[0], dao_id, one.metadata, one.paths[1:])
    if picture.content_hash != one.content_hash:
        raise InvalidSearch("has changed since it was looked at: run again")
    return picture


def _hash(source: Source) -> str:
    with _opened(source.path) as file:
        return file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(path: str) -> Iterator[BufferedReader]:
    try:
        status = os.stat(path)
        if not S_ISREG(status.st_mode):
            raise InvalidSearch("is not a file")
        if not status.st_size:
            raise InvalidSearch("the file is empty")
        if status.st_size > LARGEST_FILE:
            raise InvalidSearch(f"has {status.st_size:,} bytes; at most {LARGEST_FILE:,} are read")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise InvalidSearch(f"cannot be read: {error.strerror}") from None
