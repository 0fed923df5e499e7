"""Print the output of `vision-rag`: lines, errors and the progress of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

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
from rich.text import Text

from rag.cli.errors import explain, word
from rag.indexing.bulk import Progress

OUT: Final = Console()
ERR: Final = Console(stderr=True)


def say(line: str) -> None:
    """Print a line of the result to standard output, unwrapped."""
    OUT.print(line, soft_wrap=True, highlight=False, markup=False)


def warn(line: str) -> None:
    """Print a line to standard error, unwrapped."""
    ERR.print(escape(line), soft_wrap=True)


def fail(code: str, sentence: str) -> None:
    """Print an error in the user's language to standard error."""
    line, details = explain(code, sentence)
    ERR.print(f"[red]{word('error')}:[/] {escape(line)}", soft_wrap=True)
    if details:
        warn(details)


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
        console=ERR,
    )
    tasks: dict[str, TaskID] = {}

    def report(activity: str, done: int, total: int, note: str) -> None:
        if activity not in tasks:
            tasks[activity] = bar.add_task(activity, total=total, note="")
        bar.update(tasks[activity], completed=done, total=total, note=note)

    with bar:
        yield report
