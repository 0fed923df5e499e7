"""Index files: hash them, and carry out the plan of a run.

The collection is its own ledger (decision 0003): nothing else records which files are indexed. A
run writes new pictures before it removes anything old. So a killed run loses nothing, and the next
run continues.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Event

from bento.contract.errors import InvalidSearch, VisionError
from bento.contract.images import Outcome
from rag.indexing.backends import Backend
from rag.indexing.bulk import Progress, each, index_each
from rag.indexing.failures import Failure, IndexingError
from rag.indexing.files import content_hash, read
from rag.indexing.plan import Loss, Plan, Wanted, metadata_at, paths_of
from rag.indexing.retrying import attempt, patiently
from rag.indexing.sources import Source, Sources
from rag.pictures.index import Picture


@dataclass
class Report:
    """The results of a run. The counts are of pictures."""

    indexed: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: int = 0
    forgotten: int = 0
    failures: list[Failure] = field(default_factory=list)


def hash_sources(
    sources: Sources, workers: int, progress: Progress
) -> tuple[list[tuple[Source, str]], list[Failure]]:
    """Return the readable sources with their SHA-256 in hex, and the failures of the others."""
    hashed: dict[int, tuple[Source, str]] = {}  # by their index among the sources
    failures: list[Failure] = []
    given = sources.pictures
    hashes = each(
        lambda place: content_hash(given[place].path), range(len(given)), workers, Event()
    )
    for done, (place, result) in enumerate(hashes, 1):
        try:
            hashed[place] = (given[place], result.result())
        except InvalidSearch as error:
            failures.append(Failure.of(given[place].path, error))
        progress("hashing", done, len(given), f"{len(failures)} failed")
    in_order = [hashed[place] for place in sorted(hashed)]
    in_order.sort(key=lambda item: item[0].path)
    failures.sort(key=lambda failure: failure.path)
    return in_order, failures


def carry_out(
    plan: Plan, backend: Backend, collection: str, dao_id: str, workers: int, progress: Progress
) -> Report:
    """Carry out a plan, and return the counts and the failures.

    Raises an error that would stop the other pictures, too, such as an unreachable service. A later
    run continues.
    """
    run = _Run(plan, backend, collection, dao_id, workers, progress)
    # New pictures first: if the run is killed here, every path still has a picture.
    run.add([one for one in plan.add if not one.held])
    gone = run.update([one for one in plan.add if one.held])
    run.add(gone)
    run.lose(plan.lose)
    return run.report


def lose(loss: Loss, backend: Backend, collection: str, kept: tuple[str, ...] = ()) -> bool:
    """Remove a stored picture's lost paths, except `kept`; return whether it was deleted."""
    image = loss.image
    paths = sorted({*loss.left, *kept})
    if not paths:
        return backend.delete(image.id, image.dao_id, collection)
    metadata = metadata_at(image, paths[0])
    backend.update(image.id, image.dao_id, collection, paths=paths, metadata=metadata)
    return False


class _Run:
    """Carries out the steps of a plan, and counts their results in `report`."""

    def __init__(
        self,
        plan: Plan,
        backend: Backend,
        collection: str,
        dao_id: str,
        workers: int,
        progress: Progress,
    ) -> None:
        self.report = Report(unchanged=plan.unchanged, duplicates=plan.duplicates)
        self._backend = backend
        self._collection = collection
        self._dao_id = dao_id
        self._workers = workers
        self._progress = progress
        self._total = len(plan.add)
        self._finished = 0
        self._failed: set[str] = set()  # paths
        self._stop = Event()

    def add(self, pictures: Sequence[Wanted]) -> None:
        """Embed and store pictures."""
        load = partial(_picture, dao_id=self._dao_id)
        for one, outcome in index_each(
            load,
            pictures,
            self._backend,
            self._collection,
            self._workers,
            self._stop,
            sleep=self._pause,
        ):
            self._count(one, outcome)

    def update(self, pictures: Iterable[Wanted]) -> list[Wanted]:
        """Update payloads; return the pictures that another client has deleted."""
        gone = []
        for one, result in each(self._update, pictures, self._workers, self._stop):
            updated = result.result()
            if updated is False:
                gone.append(one)
            else:
                self._count(one, "updated" if updated is True else updated)
        return gone

    def lose(self, losses: Iterable[Loss]) -> None:
        """Remove lost paths from stored pictures, but keep paths whose files failed in this run."""
        for loss in losses:
            kept = tuple(
                path
                for path in paths_of(loss.image)
                if path in self._failed and path not in loss.left
            )
            call = partial(lose, loss, self._backend, self._collection, kept)
            self.report.forgotten += patiently(call)

    def _update(self, one: Wanted) -> bool | VisionError:
        update = partial(self._backend.update, one.image_id, self._dao_id, self._collection)
        return attempt(partial(update, paths=one.paths, metadata=one.metadata), self._pause)

    def _count(self, one: Wanted, outcome: Outcome | VisionError) -> None:
        if isinstance(outcome, VisionError):
            self.report.failures += [Failure.of(path, outcome) for path in one.paths]
            self._failed.update(one.paths)
        self.report.indexed += outcome == "indexed"
        self.report.updated += outcome == "updated"
        self.report.unchanged += outcome == "unchanged"
        self._finished += 1
        self._say(f"{self.report.unchanged} unchanged, {len(self.report.failures)} failed")

    def _pause(self, seconds: float) -> bool:
        self._say("waiting: the service or its store is busy or unavailable")
        return self._stop.wait(seconds)

    def _say(self, note: str) -> None:
        self._progress("indexing", self._finished, self._total, note)


def _picture(one: Wanted, dao_id: str) -> Picture:
    """Return a picture with its file's bytes. Raises `IndexingError`."""
    data = read(one.source)
    picture = Picture(one.image_id, data, one.paths[0], dao_id, one.metadata, one.paths[1:])
    if picture.content_hash != one.content_hash:
        raise IndexingError(
            "the file changed while the command was running: run the command again", "changed_file"
        )
    return picture
