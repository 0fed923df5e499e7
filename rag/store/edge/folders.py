"""The folders of the embedded store: versions, the published one, room on the disk.

Every change is one rename, so that a killed process leaves the state before it or after it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bento.contract.errors import StoreFull, StoreUnavailable
from rag.store.checks import identity_from_json, identity_to_json
from rag.store.interface import GENERATION, ModelIdentity

# The format of collection.json and its shard. Format 1 had no vectors in 4 bits: its searches are
# right, but slower. A program that knows only format 1 would score format 2 by 4 bits alone.
FORMAT: Final = 2

# The engine writes through memory maps that grow by 32 MB. On a full disk the kernel would kill
# the process (SIGBUS), without an exception. So writes stop before the disk is full.
MIN_FREE_BYTES: Final = 256 << 20

_LINK: Final = "published"


def published_in(folder: Path) -> Path | None:
    """Return the folder of a collection's published version; None if there is none."""
    try:
        published = folder / os.readlink(folder / _LINK)
    except FileNotFoundError:
        return None
    return published if published.exists() else None


def generations_in(folder: Path) -> list[Path]:
    """Return the folders of a collection's versions."""
    if not folder.exists():
        return []
    return [path for path in folder.iterdir() if GENERATION.fullmatch(path.name)]


def publish_in(folder: Path, generation: str) -> None:
    """Point the link at a version."""
    link = folder / ".publishing"
    link.unlink(missing_ok=True)  # a crash may have left it
    link.symlink_to(generation)
    os.replace(link, folder / _LINK)
    _sync(folder)


@contextmanager
def new_generation(folder: Path, identity: ModelIdentity) -> Iterator[Path]:
    """Lend a folder that becomes the version of `identity` when the block ends without an error.

    Until then it has a name that no version has. So a crash leaves neither a shard without an
    identity nor an identity without a shard.
    """
    building = folder / f".creating-{identity.generation}"
    if building.exists():
        shutil.rmtree(building)  # from a failure; it never held a point
    building.mkdir(parents=True)
    yield building
    _write_identity(building, identity)
    _sync(building)
    os.rename(building, folder / identity.generation)
    _sync(folder)
    _sync(folder.parent)


def drop_generation(generation: Path) -> None:
    """Delete a version. It is gone after the rename, even if a crash leaves some of its files."""
    dropped = generation.with_name(f".dropped-{generation.name}")
    if dropped.exists():
        shutil.rmtree(dropped)
    os.rename(generation, dropped)
    _sync(generation.parent)
    shutil.rmtree(dropped)


def remove_leftovers(path: Path) -> None:
    """Delete the files that a killed process left while it dropped or created versions."""
    with folder_errors(path):
        for pattern in ("*/.dropped-*", "*/.creating-*"):
            for leftover in path.glob(pattern):
                shutil.rmtree(leftover)


def read_identity(name: str, generation: Path) -> ModelIdentity:
    """Return the identity of a version's model.

    Raises `StoreUnavailable` if the file is unreadable, or if a newer program wrote it.
    """
    file = generation / "collection.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreUnavailable(
            f"{file} cannot be read ({error}), and without it nobody knows which model made the "
            f"vectors in {generation}: restore that file, or delete the folder and index again"
        ) from error
    data = data if isinstance(data, dict) else {}
    if isinstance(data.get("format"), int) and data["format"] > FORMAT:
        raise StoreUnavailable(
            f"{generation} was written by a newer version of vision-encoder (format "
            f"{data['format']}, this one reads up to {FORMAT}): upgrade, or use another QDRANT_PATH"
        )
    return identity_from_json(name, data.get("identity"))


def check_room(folder: Path) -> None:
    """Raise `StoreFull` unless the disk has room for the engine's writes."""
    with folder_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise StoreFull(
            f"the disk of the embedded store at {folder} has {free >> 20} MB free and at least "
            f"{MIN_FREE_BYTES >> 20} MB are needed: make room, or move the store (QDRANT_PATH)"
        )


@contextmanager
def folder_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system into `StoreUnavailable`."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(
            f"the folder {path} of the embedded store (QDRANT_PATH) cannot be used: {error}"
        ) from error


def _write_identity(generation: Path, identity: ModelIdentity) -> None:
    data = {"format": FORMAT, "identity": identity_to_json(identity)}
    with open(generation / "collection.json", "w", encoding="utf-8") as file:
        json.dump(data, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:  # so that a rename survives a power failure
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
