"""Find the pictures of folders, lists and manifests, and report unusable entries."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from bento.contract.errors import describe
from bento.contract.images import ImageId
from rag.indexing.failures import Code, Failure, IndexingError

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_TEXTS: Final = ("caption", "title", "category")  # fields of a manifest's line for the payload
_IMAGE_ID: Final = TypeAdapter[str](ImageId)
_KEYS: Final = ("path", "id", *_TEXTS, "tags", "metadata")


@dataclass(frozen=True)
class Source:
    """A picture file to index, with its metadata. `image_id` is None unless a manifest gives it."""

    path: str  # absolute
    metadata: Mapping[str, Any]
    image_id: str | None = None


@dataclass
class Sources:
    """The pictures and failures that were found, and the folders that were searched."""

    pictures: list[Source] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)  # completely searched, with pictures
    empty: list[str] = field(default_factory=list)  # empty folders, given or below a given one
    others: int = 0  # files without a picture's suffix
    ids: set[str] = field(default_factory=set)  # from manifests

    def fail(self, path: str, why: str, code: Code) -> None:
        self.failures.append(Failure(path, code, why))

    def is_gone(self, path: str) -> bool:
        """Return whether a file was deleted from a folder that was searched completely.

        False below an empty folder, which may be the mount point of a missing disk.
        """
        if not _below(path, self.folders) or self.may_be_unmounted(path):
            return False
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            pass  # the file may exist, but cannot be accessed
        return False

    def may_be_unmounted(self, path: str) -> bool:
        """Return whether a path is below an empty folder, which may be a missing disk."""
        return _below(path, self.empty)


def find_sources(
    given: Sequence[str],
    lines: Iterable[str],
    *,
    tags: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Sources:
    """Find the pictures of the given folders, manifests (`.jsonl`) and files.

    `-` in `given` stands for the files that `lines` name. `include` and `exclude` are patterns for
    a file's path relative to its given folder. Raises `IndexingError` if a given file or folder
    does not exist.
    """
    found = Sources()
    shared = {"tags": list(tags)} if tags else {}
    for name in given:
        path = absolute(name)
        if not name:
            raise IndexingError(
                "a source is an empty string; for the current folder, give .", "empty_path"
            )
        if name == "-":
            for line in lines:
                if line.strip():
                    _add_file(absolute(line.rstrip("\r\n")), shared, found)
        elif os.path.isdir(path):
            _walk(os.path.realpath(path), shared, include, exclude, found)
        elif not os.path.exists(path):
            raise IndexingError(f"there is no file or folder {shown(name)}", "no_such_path")
        elif path.endswith(".jsonl"):
            _read_manifest(path, shared, found)
        else:
            _add_file(path, shared, found)
    return found


def absolute(path: str) -> str:
    """Return a file's absolute path, with the links of its folder resolved, but not its own."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name) if "\0" not in path else path


def shown(path: str) -> str:
    """Return a path in printable form, also if it is not UTF-8."""
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
    unread = any(failure.code == "unreadable" for failure in found.failures[broken:])
    if not unread and len(found.pictures) > before:  # without pictures, it may be a missing disk
        found.folders.append(top)


def _folders(top: str, found: Sources) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and its subfolders, each with the sorted names of its visible files.

    Follows links. After a second link in a path, skips folders that it has already yielded:
    otherwise, folders with links to each other would yield endless paths.
    """
    seen = set()
    waiting: list[tuple[str, tuple[tuple[int, int], ...], int]] = [(top, (), 0)]
    while waiting:
        folder, above, links = waiting.pop()
        try:
            status = os.stat(folder)
            here = (status.st_dev, status.st_ino)
            if here in above:
                why = "the link leads back to a folder above it, so it was not followed"
                found.fail(folder, why, "link_loop")
                continue
            if links > 1 and here in seen:
                continue
            seen.add(here)
            with os.scandir(folder) as entries:
                held = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.fail(folder, f"cannot read the folder: {error.strerror}", "unreadable")
            continue
        if not held:
            found.empty.append(folder)
        names, below = [], []
        for entry in held:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                found.fail(entry.path, "the target of the link does not exist", "unreadable")
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
        found.fail(path, "the file name is not UTF-8 or contains NUL: rename the file", "bad_name")
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
                    found.fail(f"{manifest}, line {number}", str(error), "bad_line")
    except OSError as error:
        found.fail(manifest, f"cannot read the manifest: {error.strerror}", "unreadable")


def _add_line(line: bytes, folder: Path, shared: Mapping[str, Any], found: Sources) -> None:
    """Add the picture of a manifest's line. Raises `ValueError` if the line is not valid."""
    try:
        given = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON: {error}") from None
    if not _is_text(json.dumps(given, ensure_ascii=False)):
        raise ValueError("the line has an unpaired surrogate, which is not a character")
    if not isinstance(given, dict) or not isinstance(given.get("path"), str):
        raise ValueError('the line must be an object with "path", a string')
    if unknown := sorted(given.keys() - set(_KEYS)):
        raise ValueError(f"unknown fields: {', '.join(unknown)}; allowed: {', '.join(_KEYS)}")
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
            raise ValueError(f"the id {image_id!r} is already used by an earlier line")
        found.ids.add(image_id)
    metadata = {**more, **{k: given[k] for k in _TEXTS if k in given}}
    if all_tags := list(dict.fromkeys([*tags, *shared.get("tags", ())])):
        metadata["tags"] = all_tags
    _add_file(absolute(os.path.join(folder, given["path"])), metadata, found, image_id)


def _check_id(image_id: str) -> None:
    try:
        _IMAGE_ID.validate_python(image_id)
    except ValidationError as error:
        raise ValueError(f"the id is not valid: {describe(error)}") from None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")
