"""The folders of the embedded store: generations, which one is published, room on the disk.

Every change is one rename, so that a killed process leaves the one state or the other.
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

# Of collection.json and what lies beside it. Format 1 had no vectors in 4 bits: its searches are
# right and slower. A version that reads only that would score the others by 4 bits alone.
FORMAT: Final = 2

# The engine writes through memory maps that grow by 32 MB: on a full disk the kernel ends the
# process (SIGBUS), without an exception. So it is kept from getting there.
MIN_FREE_BYTES: Final = 256 << 20

_LINK: Final = "published"


def published_in(folder: Path) -> Path | None:
    """Return the published generation of a collection's folder, None when there is none."""
    try:
        published = folder / os.readlink(folder / _LINK)
    except FileNotFoundError:
        return None
    return published if published.exists() else None


def generations_in(folder: Path) -> list[Path]:
    """Return the generations in a collection's folder."""
    if not folder.exists():
        return []
    return [path for path in folder.iterdir() if GENERATION.fullmatch(path.name)]


def publish_in(folder: Path, generation: str) -> None:
    """Make the link name a generation."""
    link = folder / ".publishing"
    link.unlink(missing_ok=True)  # what a crash left
    link.symlink_to(generation)
    os.replace(link, folder / _LINK)
    _sync(folder)


@contextmanager
def new_generation(folder: Path, identity: ModelIdentity) -> Iterator[Path]:
    """Lend a folder that becomes the generation of `identity` when the block ends well.

    It has a name that no generation has until then, so that a crash leaves neither a shard
    without an identity nor an identity without a shard.
    """
    building = folder / f".creating-{identity.generation}"
    if building.exists():
        shutil.rmtree(building)  # what a failure left; it never held a point
    building.mkdir(parents=True)
    yield building
    _write_identity(building, identity)
    _sync(building)
    os.rename(building, folder / identity.generation)
    _sync(folder)
    _sync(folder.parent)


def drop_generation(generation: Path) -> None:
    """Delete a generation: it is gone with the renaming, the rest may be cut short."""
    dropped = generation.with_name(f".dropped-{generation.name}")
    if dropped.exists():
        shutil.rmtree(dropped)
    os.rename(generation, dropped)
    _sync(generation.parent)
    shutil.rmtree(dropped)


def remove_leftovers(path: Path) -> None:
    """Delete what a killed process left of generations that it dropped or was creating."""
    with folder_errors(path):
        for pattern in ("*/.dropped-*", "*/.creating-*"):
            for leftover in path.glob(pattern):
                shutil.rmtree(leftover)


def read_identity(name: str, generation: Path) -> ModelIdentity:
    """Return which model made the vectors of a generation.

    Raises `StoreUnavailable` when nobody can know, or when a newer version wrote it.
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
    """Raise `StoreFull` unless the disk has room for what the engine may write."""
    with folder_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise StoreFull(
            f"the disk of the embedded store at {folder} has {free >> 20} MB free and at least "
            f"{MIN_FREE_BYTES >> 20} MB are needed: make room, or move the store (QDRANT_PATH)"
        )


@contextmanager
def folder_errors(path: Path) -> Iterator[None]:
    """Turn what the file system says into `StoreUnavailable`."""
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


def _sync(folder: Path) -> None:  # so that a renaming outlasts a loss of power
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
