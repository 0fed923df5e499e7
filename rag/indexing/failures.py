"""Errors of files, manifests and commands, and the failures that a run reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bento.contract.errors import InvalidSearch, VisionError

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
