"""Finding the pictures of folders, lists and manifests, and the failures among them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from bento.contract.errors import InvalidSearch, describe
from bento.contract.images import ImageId

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_TEXTS: Final = ("caption", "title", "category")  # of a manifest's line, into the payload
_UNREAD: Final = "cannot be read"
_IMAGE_ID: Final = TypeAdapter[str](ImageId)
_KEYS: Final = ("path", "id", *_TEXTS, "tags", "metadata")


@dataclass(frozen=True)
class Source:
    """A picture file to index, with its metadata; `image_id` if a manifest gives one."""

    path: str  # absolute
    metadata: Mapping[str, Any]
    image_id: str | None = None


@dataclass(frozen=True)
class Failure:
    """A path, or a line of a manifest, that cannot be indexed, and why."""

    path: str
    why: str


@dataclass
class Sources:
    """The pictures, the failures, and the folders that were searched."""

    pictures: list[Source] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)  # searched completely
    empty: list[str] = field(default_factory=list)  # of the folders below them
    others: int = 0  # files whose names do not end as a picture's
    ids: set[str] = field(default_factory=set)  # from manifests

    def fail(self, path: str, why: str) -> None:
        self.failures.append(Failure(path, why))

    def is_gone(self, path: str) -> bool:
        """Return whether a file was deleted from a folder that was searched completely.

        False below an empty folder, which may be a disk that is not mounted.
        """
        if not _below(path, self.folders) or self.may_be_away(path):
            return False
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            pass  # unreadable, but perhaps there
        return False

    def may_be_away(self, path: str) -> bool:
        """Return whether a path is below a folder that is empty now."""
        return _below(path, self.empty)


def find_sources(
    given: Sequence[str],
    lines: Iterable[str],
    *,
    tags: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Sources:
    """Find pictures: below folders, in manifests (`.jsonl`), and files given by name.

    `-` among `given` stands for the files that `lines` name. `include` and `exclude` are patterns
    for the path below its folder. Raises `InvalidSearch` when a given file or folder does not
    exist.
    """
    found = Sources()
    shared = {"tags": list(tags)} if tags else {}
    for name in given:
        path = absolute(name)
        if not name:
            raise InvalidSearch("an empty name is no file or folder; . is this one")
        if name == "-":
            for line in lines:
                if line.strip():
                    _add_file(absolute(line.rstrip("\r\n")), shared, found)
        elif os.path.isdir(path):
            _walk(os.path.realpath(path), shared, include, exclude, found)
        elif not os.path.exists(path):
            raise InvalidSearch(f"there is no file or folder {shown(name)}")
        elif path.endswith(".jsonl"):
            _read_manifest(path, shared, found)
        else:
            _add_file(path, shared, found)
    return found


def absolute(path: str) -> str:
    """Return a file's absolute path: its folder with links resolved, its own name unchanged."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name) if "\0" not in path else path


def shown(path: str) -> str:
    """Return a path in a printable form, even if its name is not UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()


def _walk(
    top: str,
    shared: Mapping[str, Any],
    include: Sequence[str],
    exclude: Sequence[str],
    found: Sources,
) -> None:
    broken, before = len(found.failures), len(found.pictures)
    for folder, names in _folders(top, found):
        for name in names:
            path = os.path.join(folder, name)
            below = os.path.relpath(path, top)
            if os.path.splitext(name)[1].lower() not in SUFFIXES:
                found.others += 1
            elif _wanted(below, include, exclude):
                _add_file(path, shared, found)
    unread = any(failure.why.startswith(_UNREAD) for failure in found.failures[broken:])
    if not unread and len(found.pictures) > before:  # an empty one may be an unmounted disk
        found.folders.append(top)


def _folders(top: str, found: Sources) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and those below it, each with the names of its files, sorted, not hidden.

    Follows links. Behind a second link it skips folders that it has seen, since folders with links
    to each other have endless paths.
    """
    seen = set()
    waiting: list[tuple[str, tuple[tuple[int, int], ...], int]] = [(top, (), 0)]
    while waiting:
        folder, above, links = waiting.pop()
        try:
            status = os.stat(folder)
            here = (status.st_dev, status.st_ino)
            if here in above:
                found.fail(folder, "is a link to a folder that it lies in: a loop, not followed")
                continue
            if links > 1 and here in seen:
                continue
            seen.add(here)
            with os.scandir(folder) as entries:
                held = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.fail(folder, f"{_UNREAD}: {error.strerror}")
            continue
        if not held:
            found.empty.append(folder)
        names, below = [], []
        for entry in held:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                found.fail(entry.path, f"{_UNREAD}: a link to what is not there")
            elif entry.is_dir():
                below.append((entry.path, (*above, here), links + entry.is_symlink()))
            elif entry.is_file():
                names.append(entry.name)
        yield folder, names
        waiting += reversed(below)


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _wanted(below: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Return whether a path passes the patterns, in which `*` also matches `/`."""
    if include and not any(fnmatchcase(below, pattern) for pattern in include):
        return False
    return not any(fnmatchcase(below, pattern) for pattern in exclude)


def _add_file(
    path: str, metadata: Mapping[str, Any], found: Sources, image_id: str | None = None
) -> None:
    if not _is_text(path) or "\0" in path:
        found.fail(path, "its name is not UTF-8: rename it")
        return
    found.pictures.append(Source(path, metadata, image_id))


def _read_manifest(manifest: str, shared: Mapping[str, Any], found: Sources) -> None:
    try:
        with open(manifest, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    if line.strip():
                        _add_line(line, Path(manifest).parent, shared, found)
                except ValueError as error:
                    found.fail(f"{manifest}, line {number}", str(error))
    except OSError as error:
        found.fail(manifest, f"{_UNREAD}: {error.strerror}")


def _add_line(line: bytes, folder: Path, shared: Mapping[str, Any], found: Sources) -> None:
    """Add the picture of a manifest's line. Raises `ValueError` with the problem."""
    try:
        given = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not _is_text(json.dumps(given, ensure_ascii=False)):
        raise ValueError("has half a character (a lone surrogate)")
    if not isinstance(given, dict) or not isinstance(given.get("path"), str):
        raise ValueError('needs an object with a "path"')
    if unknown := sorted(given.keys() - set(_KEYS)):
        raise ValueError(f"has {', '.join(unknown)}; allowed are {', '.join(_KEYS)}")
    for key in ("id", *_TEXTS):
        if not isinstance(given.get(key, ""), str):
            raise ValueError(f"{key} must be a string")
    more = given.get("metadata", {})
    if not isinstance(more, dict):
        raise ValueError("metadata must be an object")
    tags = given.get("tags", more.get("tags", []))
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError("tags must be a list of strings")
    image_id = given.get("id")
    if image_id is not None:
        _check_id(image_id)
        if image_id in found.ids:
            raise ValueError(f"the id {image_id!r} was on a line before")
        found.ids.add(image_id)
    metadata = {**more, **{k: given[k] for k in _TEXTS if k in given}}
    if all_tags := list(dict.fromkeys([*tags, *shared.get("tags", ())])):
        metadata["tags"] = all_tags
    _add_file(absolute(os.path.join(folder, given["path"])), metadata, found, image_id)


def _check_id(image_id: str) -> None:
    try:
        _IMAGE_ID.validate_python(image_id)
    except ValidationError as error:
        raise ValueError(f"the id cannot be used: {describe(error)}") from None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
