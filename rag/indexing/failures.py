"""Errors of files, manifests and commands, and the failures that a run reports."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from tempfile import mkstemp
from typing import Final, Literal

from bento.contract.errors import InvalidSearch, VisionError

_STREAMS: Final = ("/dev", "/dev/fd", "/proc/self/fd")  # folders of /dev/stdout and its like

# The codes of `IndexingError`; `rag.cli.errors` translates them.
Code = Literal[
    "bad_filter",
    "bad_line",
    "bad_name",
    "changed_file",
    "empty_file",
    "empty_path",
    "failures_unwritable",
    "incomplete_reindex",
    "link_loop",
    "lost_file",
    "mixed_sources",
    "no_pictures",
    "no_query",
    "no_standard_input",
    "no_such_path",
    "not_a_file",
    "not_indexed",
    "nothing_left",
    "prune_needs_folder",
    "too_large",
    "torch_missing",
    "unreadable",
]


class IndexingError(InvalidSearch):
    """A file, a manifest or an argument that cannot be used."""

    code: Code

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message, code=code)


@dataclass(frozen=True)
class Failure:
    """A file, a folder or a line of a manifest that could not be indexed, and the error."""

    path: str
    code: str
    why: str

    @classmethod
    def of(cls, path: str, error: VisionError) -> Failure:
        return cls(path, error.code, str(error))


def write_failures(failures: Sequence[Failure], file: str) -> None:
    """Write failures to a file, one JSON object per line, and replace an earlier file.

    Only the user can read the file. A link of that name is replaced, not followed: the folder may
    come from a stranger, and the link may lead to a file of the user. Raises `IndexingError`.
    """
    # as ASCII, since a path may not be UTF-8
    lines = "".join(json.dumps(asdict(failure)) + "\n" for failure in failures).encode()
    folder = os.path.dirname(os.path.abspath(file))
    try:
        if folder in _STREAMS:
            with open(file, "wb") as stream:
                stream.write(lines)
        else:
            _replace(file, folder, lines)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise IndexingError(
            f"cannot write {file}: {why} (--failures)", "failures_unwritable"
        ) from None


def _replace(file: str, folder: str, data: bytes) -> None:
    descriptor, temporary = mkstemp(prefix=".failures-", dir=folder)  # new, with the mode 600
    try:
        with open(descriptor, "wb") as new:
            new.write(data)
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
