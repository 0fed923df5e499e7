"""The folders of the embedded store: versions, the published one, free space on the disk.

Every change is one rename, so a killed process leaves the state before it or after it.
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

# The format of collection.json and its shard. Format 1 had no 4-bit vectors: it is searched
# correctly, but more slowly. A program that supports only format 1 would misread format 2: it
# would score by the 4-bit vectors alone.
FORMAT: Final = 2

# The engine writes through memory maps that grow by 32 MB. On a full disk the kernel would kill
# the process (SIGBUS) without an exception, so the store stops writing before the disk is full.
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
    link.unlink(missing_ok=True)  # a killed process may have left it
    link.symlink_to(generation)
    os.replace(link, folder / _LINK)
    _sync(folder)


@contextmanager
def new_generation(folder: Path, identity: ModelIdentity) -> Iterator[Path]:
    """Yield a folder that becomes the version of `identity` when the block ends without an error.

    Until then, its name is not that of a version. So a crash cannot leave a shard without an
    identity, or an identity without a shard.
    """
    building = folder / f".creating-{identity.generation}"
    if building.exists():
        shutil.rmtree(building)  # left by a failed attempt; it never held a point
    building.mkdir(parents=True)
    yield building
    _write_identity(building, identity)
    _sync(building)
    os.rename(building, folder / identity.generation)
    _sync(folder)
    _sync(folder.parent)


def drop_generation(generation: Path) -> None:
    """Delete a version. After the rename it no longer exists, even if a crash leaves its files."""
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
            f"{file} cannot be read ({error}), so the model of the vectors in {generation} is "
            "unknown: restore the file, or delete the folder and index the pictures again"
        ) from error
    data = data if isinstance(data, dict) else {}
    if isinstance(data.get("format"), int) and data["format"] > FORMAT:
        raise StoreUnavailable(
            f"{generation} has format {data['format']}, written by a newer version of "
            f"vision-encoder; this version reads formats up to {FORMAT}. Upgrade vision-encoder, "
            "or set QDRANT_PATH to another folder"
        )
    return identity_from_json(name, data.get("identity"))


def check_room(folder: Path, min_free_bytes: int) -> None:
    """Raise `StoreFull` unless the disk has room for the engine's writes."""
    with folder_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < min_free_bytes:
        raise StoreFull(
            f"the disk of the embedded store at {folder} has {free >> 20} MB free, but the store "
            f"needs {min_free_bytes >> 20} MB: free disk space, or move the store (QDRANT_PATH)"
        )


@contextmanager
def folder_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system into `StoreUnavailable`."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(
            f"the embedded store cannot use its folder {path} (QDRANT_PATH): {error}"
        ) from error


def _write_identity(generation: Path, identity: ModelIdentity) -> None:
    data = {"format": FORMAT, "identity": identity_to_json(identity)}
    with open(generation / "collection.json", "w", encoding="utf-8") as file:
        json.dump(data, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the renames in a folder survive a power failure."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
