"""Plan a run: compare the sources with the collection. This module neither reads nor writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bento.contract.images import IndexedImage
from rag.indexing.sources import Source
from rag.pictures.index import metadata_of

ID_DIGITS: Final = 32  # hex digits of the content's hash, the id of a picture without a given id

IsGone = Callable[[str], bool]  # returns whether the file at a path was deleted


@dataclass(frozen=True)
class Wanted:
    """A picture as the collection should hold it, with all its paths, sorted."""

    image_id: str
    content_hash: str
    paths: tuple[str, ...]
    source: str  # the path that this run hashed
    metadata: Mapping[str, Any]
    held: bool = False  # the collection has this content, so there is nothing to embed


@dataclass(frozen=True)
class Loss:
    """A stored picture that loses paths. With no path in `left`, it is deleted from the index."""

    image: IndexedImage
    left: tuple[str, ...]


@dataclass
class Plan:
    """The steps of a run: `add` pictures first, then take the paths of `lose`."""

    add: list[Wanted] = field(default_factory=list)
    lose: list[Loss] = field(default_factory=list)
    unchanged: int = 0
    duplicates: int = 0  # paths after the first of each picture


def never(_path: str) -> bool:
    """Return False: treat no file as deleted."""
    return False


def make_plan(
    hashed: Iterable[tuple[Source, str]], held: Iterable[IndexedImage], is_gone: IsGone = never
) -> Plan:
    """Return the steps that bring the collection up to date with the sources.

    A picture with a given id keeps it, even if its file moves. Stored paths that are not among the
    sources stay, unless `is_gone` says that their file was deleted. Stored metadata stays, unless a
    source changes it; tags add up. A picture that replaces another at its path inherits the
    metadata.
    """
    images = {image.id: image for image in held}
    wanted: dict[str, Wanted] = {}
    now: set[str] = set()
    for source, image_id, content_hash in _named(list(hashed), images.values()):
        now.add(source.path)
        paths, metadata = {source.path}, source.metadata
        if one := wanted.get(image_id):
            # Entries for one file add up. Of several files, only the first one's metadata counts.
            twice = source.path in one.paths
            metadata = _added(one.metadata, metadata) if twice else one.metadata
            paths |= set(one.paths)
        first = one.source if one else source.path
        wanted[image_id] = Wanted(image_id, content_hash, tuple(sorted(paths)), first, metadata)
    others = [image for image in images.values() if image.id not in wanted]
    known = {path: _known(image) for image in others for path in paths_of(image)}
    plan = Plan()
    for one in wanted.values():
        image = images.get(one.image_id)
        before = known.get(one.source, {}) if image is None else _known(image)
        left = () if image is None else _left(image, now, is_gone)
        complete = _completed(one, image, left, before)
        plan.duplicates += len(complete.paths) - 1
        if image is not None and complete.held and _says(image, complete):
            plan.unchanged += 1
        else:
            plan.add.append(complete)
    for image in others:
        left = _left(image, now, is_gone)
        if left != paths_of(image):
            plan.lose.append(Loss(image, left))
    return plan


def paths_of(image: IndexedImage) -> tuple[str, ...]:
    """Return all paths of a stored picture."""
    first = (image.path,) if image.path else ()
    return (*first, *(image.payload.get("duplicates") or ()))


def metadata_at(image: IndexedImage, path: str) -> dict[str, Any]:
    """Return the metadata that a stored picture has once `path` is its first path."""
    return {"title": _title(path), **_known(image)}


def _named(
    hashed: Sequence[tuple[Source, str]], images: Collection[IndexedImage]
) -> Iterator[tuple[Source, str, str]]:
    """Yield each source with its id (given now, stored, or made from the content) and its hash."""
    named = {image.id: _content(image) for image in images if _is_named(image)}
    names: dict[str, list[str]] = {}
    for image in images:
        for path in paths_of(image) if image.id in named else ():
            names.setdefault(path, []).append(image.id)
    given: dict[str, list[str]] = {}
    for source, _ in hashed:
        if source.image_id is not None:
            given.setdefault(source.path, []).append(source.image_id)
    names |= given  # ids from a manifest override stored ids

    def rank(item: tuple[Source, str]) -> int:
        source, content_hash = item
        ids = names.get(source.path, ())
        same = any(named.get(image_id) == content_hash for image_id in ids)
        return 0 if source.image_id is not None else 1 if same else 2

    content_of: dict[str, str] = {}
    others = []
    for source, content_hash in sorted(hashed, key=rank):
        ids = names.get(source.path, []) if source.image_id is None else [source.image_id]
        for image_id in ids:
            # A file whose content changed is no longer a copy of the picture with its id.
            if content_of.setdefault(image_id, content_hash) == content_hash:
                yield source, image_id, content_hash
            else:
                others.append((source, content_hash))
        if not ids:
            others.append((source, content_hash))
    name_of: dict[str, str] = {}
    for image_id, content_hash in {**named, **content_of}.items():
        name_of.setdefault(content_hash, image_id)
    for source, content_hash in others:
        yield source, name_of.get(content_hash, content_hash[:ID_DIGITS]), content_hash


def _content(image: IndexedImage) -> str:
    return str(image.payload.get("content_hash"))


def _is_named(image: IndexedImage) -> bool:
    return image.id != _content(image)[:ID_DIGITS]


def _left(image: IndexedImage, now: Container[str], is_gone: IsGone) -> tuple[str, ...]:
    """Return the paths of a stored picture that this run neither hashed nor found deleted."""
    return tuple(path for path in paths_of(image) if path not in now and not is_gone(path))


def _completed(
    one: Wanted, image: IndexedImage | None, left: Sequence[str], before: Mapping[str, Any]
) -> Wanted:
    """Return a wanted picture with the paths and metadata to keep from the stored one."""
    held = image is not None and image.payload.get("content_hash") == one.content_hash
    # If the content differs, the picture was replaced, and its other paths show the old one.
    paths = tuple(sorted({*one.paths, *(left if held else ())}))
    metadata = {"title": _title(paths[0]), **_added(before, one.metadata)}
    return replace(one, paths=paths, metadata=metadata, held=held)


def _added(metadata: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata updated with `more`; tags add up."""
    tags = [*_tags(metadata), *_tags(more)]
    return {**metadata, **more, **({"tags": list(dict.fromkeys(tags))} if tags else {})}


def _tags(metadata: Mapping[str, Any]) -> list[str]:
    tags = metadata.get("tags")
    return tags if isinstance(tags, list) else [tags] if isinstance(tags, str) else []


def _known(image: IndexedImage) -> dict[str, Any]:
    """Return a stored picture's metadata, without a title made from its file's name."""
    metadata = metadata_of(image.payload)
    if image.path and metadata.get("title") == _title(image.path):
        del metadata["title"]
    return metadata


def _title(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0].replace("_", " ")


def _says(image: IndexedImage, one: Wanted) -> bool:
    return paths_of(image) == one.paths and metadata_of(image.payload) == one.metadata
