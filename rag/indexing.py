"""Indexing files: look at what is there and what is held, make a plan, carry it out.

The collection is its own ledger (decision 0003): nothing else remembers what was indexed. What is
new is written before anything old is taken away, so that a run that is killed loses nothing, and
the next one goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Any, Final, TypeVar

from rag.backends import Backend
from rag.errors import InvalidSearch
from rag.pictures import Picture, metadata_of
from rag.schemas import IndexedImage
from rag.sources import Failure, Source, Sources

ID_DIGITS: Final = 32  # of the content's hash, that name a picture which nobody named
ATTEMPTS: Final = 6
_LONGEST_WAIT: Final = 15.0  # seconds
PICTURES_FAULT: Final = frozenset({400, 413, 415, 422})  # an error's status, local or remote

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Wanted:
    """A picture as it shall be held: which it is, and all its paths, sorted."""

    image_id: str
    content_hash: str
    paths: tuple[str, ...]
    source: str  # the one of them that this run looked at
    metadata: Mapping[str, Any]
    named: bool  # the id is somebody's, not the content's


@dataclass(frozen=True)
class Loss:
    """A held picture that loses paths; without one left it is forgotten."""

    image: IndexedImage
    left: tuple[str, ...]


@dataclass
class Plan:
    """What a run does: `add` first, then `lose`."""

    add: list[Wanted] = field(default_factory=list)
    lose: list[Loss] = field(default_factory=list)
    unchanged: int = 0
    duplicates: int = 0  # paths beyond the first of each picture


@dataclass
class Report:
    """What a run did."""

    indexed: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: int = 0
    forgotten: int = 0
    failures: list[Failure] = field(default_factory=list)


Progress = Callable[[str, int, int, str], None]  # what is being done, done, total, and a note


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
    hashed: list[tuple[Source, str]] = []
    failures: list[Failure] = []
    for done, (source, result) in enumerate(each(_hash, sources.pictures, workers), 1):
        try:
            hashed.append((source, result.result()))
        except InvalidSearch as error:
            failures.append(Failure(source.path, str(error)))
        progress("looking", done, len(sources.pictures), f"{len(failures)} failed")
    hashed.sort(key=lambda item: item[0].path)
    failures.sort(key=lambda failure: failure.path)
    return hashed, failures


def make_plan(
    hashed: Iterable[tuple[Source, str]], held: Iterable[IndexedImage], gone: Sequence[str] = ()
) -> Plan:
    """Return what makes the collection hold the sources.

    Held paths that are not among the sources stay, but for those below the folders `gone`, when
    no such file exists any more. What is known of a picture stays too, unless a source says
    otherwise; tags add up.
    """
    wanted: dict[str, Wanted] = {}
    now: set[str] = set()
    for source, content_hash in hashed:
        image_id = source.image_id or content_hash[:ID_DIGITS]
        now.add(source.path)
        one = wanted.get(image_id)
        if one is None:
            named = source.image_id is not None
            one = Wanted(
                image_id, content_hash, (source.path,), source.path, source.metadata, named
            )
        else:
            one = replace(one, paths=tuple(sorted({*one.paths, source.path})))
        wanted[image_id] = one
    images = list(held)
    known = {path: _known(image) for image in images for path in paths_of(image)}
    by_id = {image.id: image for image in images}
    plan = Plan()
    for one in wanted.values():
        image = by_id.get(one.image_id)
        left = () if image is None or one.named else _left(image, now, gone)
        plan.add.append(_completed(one, image, left, known))
        plan.duplicates += len(plan.add[-1].paths) - 1
        if image is not None and _is_held(plan.add[-1], image):
            plan.add.pop()
            plan.unchanged += 1
    for image in images:
        if image.id in wanted:
            continue
        left = _left(image, now, gone)
        if left != paths_of(image):
            plan.lose.append(Loss(image, left))
    return plan


def _left(image: IndexedImage, now: Container[str], gone: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of a held picture that this run neither looked at nor found gone."""
    return tuple(path for path in paths_of(image) if path not in now and not _is_gone(path, gone))


def _completed(
    one: Wanted,
    image: IndexedImage | None,
    left: Sequence[str],
    known: Mapping[str, Mapping[str, Any]],
) -> Wanted:
    """Return a wanted picture with what stays of the one that is held, or that its path had."""
    before = known.get(one.source, {}) if image is None else _known(image)
    paths = tuple(sorted({*one.paths, *left}))
    metadata = {"title": _title(paths[0]), **before, **one.metadata}
    if tags := list(dict.fromkeys([*before.get("tags", ()), *one.metadata.get("tags", ())])):
        metadata["tags"] = tags
    return replace(one, paths=paths, metadata=metadata)


def _known(image: IndexedImage) -> dict[str, Any]:
    """Return what is known of a held picture, without a title that only repeats its file's name."""
    metadata = metadata_of(image.payload)
    if image.path and metadata.get("title") == _title(image.path):
        del metadata["title"]
    return metadata


def _title(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0].replace("_", " ")


def paths_of(image: IndexedImage) -> tuple[str, ...]:
    """Return all places of a held picture."""
    first = (image.path,) if image.path else ()
    return (*first, *(image.payload.get("duplicates") or ()))


def carry_out(
    plan: Plan, backend: Backend, collection: str, dao_id: str, workers: int, progress: Progress
) -> Report:
    """Do what a plan says.

    Raises what concerns more than one picture: the next ones would fail alike, and running
    again goes on.
    """
    report = Report(unchanged=plan.unchanged, duplicates=plan.duplicates)

    def add(one: Wanted) -> str:
        return patiently(lambda: _add(one, backend, collection, dao_id))

    for done, (one, result) in enumerate(each(add, plan.add, workers), 1):
        try:
            outcome = result.result()
        except Exception as error:
            if getattr(error, "status", None) not in PICTURES_FAULT:
                raise
            report.failures.append(Failure(one.source, str(error)))
        else:
            report.indexed += outcome == "indexed"
            report.updated += outcome == "updated"
            report.unchanged += outcome == "unchanged"
        note = f"{report.unchanged} unchanged, {len(report.failures)} failed"
        progress("indexing", done, len(plan.add), note)
    failed = {failure.path for failure in report.failures}
    for loss in plan.lose:
        # a file that cannot be indexed as it is now stays findable as it was
        if failed.isdisjoint(paths_of(loss.image)):
            report.forgotten += patiently(partial(lose, loss, backend, collection))
    return report


def lose(loss: Loss, backend: Backend, collection: str) -> bool:
    """Take paths from a held picture; say whether it was forgotten with the last one.

    Where no file that is left has its content it keeps its paths: nothing is known for certain.
    """
    image = loss.image
    if not loss.left:
        return backend.delete(image.id, image.dao_id, collection)
    for path in loss.left:
        picture = still(image, path)
        if picture is not None:
            others = tuple(other for other in loss.left if other != path)
            backend.index(replace(picture, duplicates=others), collection)
            break
    return False


def still(image: IndexedImage, path: str) -> Picture | None:
    """Return a held picture as it is at a path; None when the file is gone or has changed."""
    try:
        data = read(path)
    except InvalidSearch:
        return None
    duplicates = tuple(other for other in paths_of(image) if other != path)
    metadata = metadata_of(image.payload)
    picture = Picture(image.id, data, path, image.dao_id, metadata, duplicates)
    return picture if picture.content_hash == image.payload.get("content_hash") else None


def patiently(call: Callable[[], R], *, sleep: Callable[[float], None] = time.sleep) -> R:
    """Make a call, again while the service is busy, starting or away; about a minute at most."""
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except Exception as error:
            if not _passes(error):
                raise
            asked = getattr(error, "retry_after", None) or 2.0 ** (attempt - 1)
            sleep(min(float(asked), _LONGEST_WAIT))
    return call()


def _passes(error: Exception) -> bool:
    code, status = getattr(error, "code", None), getattr(error, "status", None)
    # the client's errors without a status: no connection, or no answer in time
    return status == 429 or code == "not_ready" or (status is None and code == "error")


def _add(one: Wanted, backend: Backend, collection: str, dao_id: str) -> str:
    data = read(one.source)
    picture = Picture(one.image_id, data, one.paths[0], dao_id, one.metadata, one.paths[1:])
    if not one.named and picture.content_hash != one.content_hash:
        # it has changed since it was looked at: what it is now is indexed, alone
        image_id = picture.content_hash[:ID_DIGITS]
        picture = Picture(image_id, data, one.source, dao_id, one.metadata)
    return backend.index(picture, collection)


def read(path: str) -> bytes:
    """Return a file's bytes. Raises `InvalidSearch`."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise InvalidSearch(f"cannot be read: {error.strerror}") from None
    if not data:
        raise InvalidSearch("the file is empty")
    return data


def _hash(source: Source) -> str:
    return sha256(read(source.path)).hexdigest()


def _is_held(one: Wanted, image: IndexedImage) -> bool:
    return (
        image.payload.get("content_hash") == one.content_hash
        and paths_of(image) == one.paths
        and metadata_of(image.payload) == one.metadata
    )


def _is_gone(path: str, folders: Sequence[str]) -> bool:
    below = any(path.startswith(folder.rstrip("/") + "/") for folder in folders)
    return below and not os.path.lexists(path)


def each(call: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[tuple[T, Future[R]]]:
    """Call for each item on threads, a bounded number ahead, and yield each when it is done."""
    under_way: dict[Future[R], T] = {}
    waiting = iter(items)
    with ThreadPoolExecutor(workers) as threads:
        try:
            while True:
                for item in waiting:
                    under_way[threads.submit(call, item)] = item
                    if len(under_way) >= 2 * workers:
                        break
                if not under_way:
                    return
                for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield under_way.pop(done), done
        finally:
            for future in under_way:
                future.cancel()
