"""Read picture files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from stat import S_ISREG
from typing import Final

from rag.indexing.failures import IndexingError

LARGEST_FILE: Final = 100_000_000  # bytes; a service accepts 20 MB by default


def read(path: str) -> bytes:
    """Return a file's bytes. Raises `IndexingError`."""
    with _opened(path, LARGEST_FILE) as file:
        return file.read()


def content_hash(path: str, *, largest: int = LARGEST_FILE) -> str:
    """Return the SHA-256 of a file's bytes, in hex.

    Raises `IndexingError`, also for a file of more than `largest` bytes.
    """
    with _opened(path, largest) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(path: str, largest: int) -> Iterator[BufferedReader]:
    try:
        status = os.stat(path)
        if not S_ISREG(status.st_mode):
            raise IndexingError("the path is not a regular file", "not_a_file")
        if not status.st_size:
            raise IndexingError("the file is empty", "empty_file")
        if status.st_size > largest:
            raise IndexingError(
                f"the file has {status.st_size:,} bytes; at most {largest:,} are allowed",
                "too_large",
            )
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise IndexingError(f"cannot read the file: {error.strerror}", "unreadable") from None
