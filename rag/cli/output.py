"""Print the output of `vision-rag`: lines, tables, errors and the progress of a run.

Everything that the command prints goes through `printable`, because paths, payloads and errors may
come from strangers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from bento.contract.base import printable, printable_json
from rag.cli.errors import explain, word
from rag.indexing.bulk import Progress

_OUT: Final = Console(emoji=False)
_ERR: Final = Console(emoji=False, stderr=True)


def say(line: str) -> None:
    """Print a line of the result to standard output, unwrapped."""
    _OUT.print(printable(line), soft_wrap=True, highlight=False, markup=False)


def say_json(value: Any) -> None:
    """Print a line of JSON to standard output."""
    print(printable_json(json.dumps(value, ensure_ascii=False)))


def say_table(
    rows: Iterable[Sequence[object]], headings: Sequence[str] = (), numbers: int = 0
) -> None:
    """Print a table to standard output. The first `numbers` columns are aligned to the right."""
    table = Table(show_header=bool(headings))
    for place, heading in enumerate(headings):
        justify: Literal["right", "left"] = "right" if place < numbers else "left"
        table.add_column(_cell(heading), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    _OUT.print(table)


def warn(line: str) -> None:
    """Print a line to standard error, unwrapped."""
    _ERR.print(escape(printable(line)), soft_wrap=True)


def fail(code: str, sentence: str) -> None:
    """Print an error in the user's language to standard error."""
    line, details = explain(code, sentence)
    _ERR.print(f"[red]{word('error')}:[/] {escape(printable(line))}", soft_wrap=True)
    if details:
        warn(details)


def _cell(content: object) -> str:
    return escape(printable(str(content)))


class _Rate(ProgressColumn):
    """Pictures per second, computed only when drawn: rich averages 1,000 samples each time."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} pictures/s" if task.speed else "")


@contextmanager
def progress() -> Iterator[Progress]:
    """Show on standard error what the command does, its progress, its rate and the time left."""
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=_ERR,
    )
    tasks: dict[str, TaskID] = {}

    def report(activity: str, done: int, total: int, note: str) -> None:
        if activity not in tasks:
            tasks[activity] = bar.add_task(activity, total=total, note="")
        bar.update(tasks[activity], completed=done, total=total, note=note)

    with bar:
        yield report
