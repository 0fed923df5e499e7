"""Re-embed a collection with another model, from the pictures' files.

A run fills a staged version beside the published one, and then publishes it in one step. If a run
is killed, the published version is complete, and the next run continues.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from threading import Event

from bento.contract.errors import InvalidSearch, VisionError
from bento.contract.images import IndexedImage
from rag.indexing.backends import Backend, hold
from rag.indexing.bulk import Progress, index_each
from rag.indexing.failures import Failure, IndexingError
from rag.indexing.files import read
from rag.indexing.plan import paths_of
from rag.pictures.index import Picture, metadata_of

_PASSES = 5  # of filling, since others may add pictures during a pass

Key = tuple[str, str]  # dao_id, id


@dataclass
class Reindexed:
    """The results of a run. `published` is false if pictures could not be re-embedded."""

    published: bool
    embedded: int = 0
    failures: list[Failure] = field(default_factory=list)


def reindex(
    backend: Backend,
    collection: str,
    *,
    workers: int,
    drop_missing: bool,
    progress: Progress,
) -> Reindexed:
    """Fill the version of the backend's model from the published version, and publish it.

    If pictures cannot be re-embedded, publishes only with `drop_missing`, without them. Raises
    `CollectionNotFound`, `IndexingError` if no picture would be left, and errors that would stop
    the other pictures, too.
    """
    stats = backend.stats(collection)
    done = Reindexed(published=True)
    if stats.generation != stats.serving:
        listed = _fill(backend, collection, stats.serving, workers, progress, done)
        if done.failures and not drop_missing:
            done.published = False
            return done
        if done.failures and len(done.failures) == len(listed):
            raise IndexingError(
                f"no picture of the collection {collection!r} can be re-embedded, so the "
                "collection would be empty: index the pictures again",
                "nothing_left",
            )
        backend.publish(collection)
        before = len(done.failures)
        _catch_up(backend, collection, stats.generation, listed, done)
        if len(done.failures) > before:
            return done  # keep the replaced version: it has pictures that the new one lacks
    for generation in backend.stats(collection).generations:
        if generation != stats.serving:
            backend.drop(collection, generation)
    return done


def _fill(
    backend: Backend,
    collection: str,
    staged: str,
    workers: int,
    progress: Progress,
    done: Reindexed,
) -> dict[Key, IndexedImage]:
    """Embed the published pictures into the staged version, until a pass changes nothing.

    Returns the published pictures that the last pass listed.
    """
    for _ in range(_PASSES):
        published = _by_key(backend.images(collection))
        held = _by_key(hold(backend, collection, generation=staged))
        todo = [image for key, image in published.items() if not _same(image, held.get(key))]
        failed = _embed(backend, collection, todo, workers, progress, done, staged=True)
        done.failures = list(failed.values())
        # An earlier run may have staged old content of a picture that fails now: delete it.
        extra = [key for key in held if key not in published or key in failed]
        for dao_id, image_id in extra:
            backend.delete(image_id, dao_id, collection, staged=True)
        if len(todo) == len(done.failures) and not extra:
            break
    return published


def _catch_up(
    backend: Backend,
    collection: str,
    replaced: str,
    listed: dict[Key, IndexedImage],
    done: Reindexed,
) -> None:
    """Repeat the writes that reached the replaced version after it was listed."""
    last = _by_key(hold(backend, collection, generation=replaced))
    changed = [image for key, image in last.items() if not _same(image, listed.get(key))]
    failed = _embed(backend, collection, changed, 1, _say_nothing, done, staged=False)
    done.failures += failed.values()
    for dao_id, image_id in listed.keys() - last.keys():
        backend.delete(image_id, dao_id, collection)


def _say_nothing(what: str, done: int, total: int, note: str) -> None:
    """Report nothing, since catching up is short."""


def _embed(
    backend: Backend,
    collection: str,
    images: list[IndexedImage],
    workers: int,
    progress: Progress,
    done: Reindexed,
    *,
    staged: bool,
) -> dict[Key, Failure]:
    failures = {}
    stop = Event()
    embed = partial(index_each, _source, images, backend, collection, workers, stop, staged=staged)
    for count, (image, outcome) in enumerate(embed(sleep=stop.wait), 1):
        done.embedded += outcome == "indexed"
        if isinstance(outcome, VisionError):
            failures[image.dao_id, image.id] = Failure.of(image.path or image.id, outcome)
        progress("re-indexing", count, len(images), f"{len(failures)} failed")
    return failures


def _source(image: IndexedImage) -> Picture:
    """Return a stored picture with its file's bytes. Raises `IndexingError` if no file has them."""
    for path in paths_of(image):
        try:
            data = read(path)
        except InvalidSearch:
            continue
        metadata = metadata_of(image.payload)
        duplicates = image.payload.get("duplicates") or ()
        picture = Picture(image.id, data, image.path, image.dao_id, metadata, duplicates)
        if picture.content_hash == image.payload.get("content_hash"):
            return picture
    raise IndexingError(
        "the file is missing or has changed: index it again, or use --drop-missing", "lost_file"
    )


def _by_key(images: Iterable[IndexedImage]) -> dict[Key, IndexedImage]:
    return {(image.dao_id, image.id): image for image in images}


def _same(image: IndexedImage, other: IndexedImage | None) -> bool:
    if other is None:
        return False
    ours, theirs = ({**one.payload, "indexed_at": None} for one in (image, other))
    return ours == theirs
