"""Reading picture files. Each error says why a file cannot be indexed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest
from io import BufferedReader
from stat import S_ISREG
from typing import Final

from bento.contract.errors import InvalidSearch

LARGEST_FILE: Final = 100_000_000  # bytes; services take 20 MB by default


def read(path: str) -> bytes:
    """Return a file's bytes. Raises `InvalidSearch`."""
    with _opened(path) as file:
        return file.read()


def content_hash(path: str) -> str:
    """Return the SHA-256 of a file's bytes, in hex. Raises `InvalidSearch`."""
    with _opened(path) as file:
        return file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(path: str) -> Iterator[BufferedReader]:
    try:
        status = os.stat(path)
        if not S_ISREG(status.st_mode):
            raise InvalidSearch("is not a file")
        if not status.st_size:
            raise InvalidSearch("the file is empty")
        if status.st_size > LARGEST_FILE:
            raise InvalidSearch(f"has {status.st_size:,} bytes; at most {LARGEST_FILE:,} are read")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise InvalidSearch(f"cannot be read: {error.strerror}") from None
