"""Read files whose paths clients have named, only below folders that the operator allows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Final

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a FIFO must not wait


def real_path(path: str, folders: Sequence[Path]) -> tuple[Path, Path] | None:
    """Return the folder that contains a file, and the file, both without links and `..`.

    Returns None for a file outside of `folders` and for a missing one. The file system is asked
    only about paths below `folders`, so the time it takes tells nothing about other files.
    """
    if not os.path.isabs(path):
        return None
    try:
        named = Path(os.path.normpath(path))
        for folder in folders:
            real_folder = Path(os.path.realpath(folder))
            if named.is_relative_to(folder) or named.is_relative_to(real_folder):
                real = Path(os.path.realpath(path, strict=True))
                if real.is_relative_to(real_folder) and real != real_folder:
                    return real_folder, real
    except (OSError, ValueError):  # ValueError: NUL, or characters that no path can have
        pass
    return None


def read_below(folder: Path, file: Path, max_bytes: int) -> bytes | None:
    """Return the bytes of a regular file below a folder, or None if there is no such file.

    Both paths are those of `real_path`. This opens one folder after the other and follows no link,
    so that nobody who replaces a part of the path meanwhile can lead out of `folder`. Files of more
    than `max_bytes` are not read.
    """
    *between, name = file.relative_to(folder).parts
    opened: list[int] = []
    try:
        opened.append(os.open(folder, _FOLDER))
        for part in between:
            opened.append(os.open(part, _FOLDER, dir_fd=opened[-1]))
        # before opening, because opening a device may have an effect
        if not _readable(os.stat(name, dir_fd=opened[-1], follow_symlinks=False), max_bytes):
            return None
        opened.append(os.open(name, _FILE, dir_fd=opened[-1]))
        if not _readable(os.fstat(opened[-1]), max_bytes):
            return None
        with open(opened[-1], "rb", closefd=False) as stream:
            data = stream.read(max_bytes + 1)
        return data if len(data) <= max_bytes else None
    except OSError:
        return None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _readable(status: os.stat_result, max_bytes: int) -> bool:
    return S_ISREG(status.st_mode) and status.st_size <= max_bytes
