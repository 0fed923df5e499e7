"""The result files in benchmarks/results: a benchmark writes one with `--save`."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, model_validator

from benchmarks.support.inputs import ROOT

RESULTS: Final = ROOT / "benchmarks" / "results"
TRIAL: Final = "trial, not in the repository"
"""The command of a measurement that cannot be repeated from the repository alone."""
_LIST: Final = re.compile(r"\[\s+([^\[\]{}]{1,400}?)\s+\]")

Cell = str | int | float | None


class Table(BaseModel):
    """A table of a result."""

    model_config = ConfigDict(extra="forbid")

    title: str = ""
    columns: list[str]
    rows: list[list[Cell]]
    detail: bool = False
    """True: docs/benchmarks.md leaves this table out."""

    @model_validator(mode="after")
    def _check_rows(self) -> Table:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(self.columns)} columns, but a row of {len(row)}: {row}")
        return self

    def markdown(self) -> str:
        """Return the table with its title as markdown."""
        lines = [self.columns, ["---"] * len(self.columns)]
        lines += [[printed(cell) for cell in row] for row in self.rows]
        title = f"{self.title}:\n\n" if self.title else ""
        return title + "".join("| " + " | ".join(line) + " |\n" for line in lines)


class Result(BaseModel):
    """A result file."""

    model_config = ConfigDict(extra="forbid")

    title: str
    command: str
    date: datetime.date
    hardware: str
    """CPU, cores, instruction sets, memory, GPU, and what else ran on the machine."""
    versions: dict[str, str]
    tables: list[Table]
    notes: list[str] = []

    @classmethod
    def read(cls, path: Path) -> Result:
        return cls.model_validate_json(path.read_text())

    def write(self, path: Path) -> None:
        """Write the file with a line for each row of a table."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_LIST.sub(_on_one_line, text) + "\n")


def _on_one_line(found: re.Match[str]) -> str:
    return "[" + re.sub(r"\s*\n\s*", " ", found[1]) + "]"


def printed(cell: Cell) -> str:
    """Return a cell as text; floats keep three digits, None is a dash."""
    if cell is None:
        return "–"
    if isinstance(cell, float) and abs(cell) < 100:
        return f"{cell:.3g}"
    return cell if isinstance(cell, str) else f"{cell:,.0f}"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    title: str = "",
    detail: bool = False,
) -> Table:
    """Return a table; floats are rounded to three digits."""
    rounded = [[_rounded(cell) for cell in row] for row in rows]
    return Table(title=title, columns=list(columns), rows=rounded, detail=detail)


def table_of(
    columns: Mapping[str, str],
    records: Iterable[Mapping[str, Any]],
    *,
    title: str = "",
    detail: bool = False,
) -> Table:
    """Return a table of records. `columns` maps their keys to the headings."""
    rows = [[record.get(key) for key in columns] for record in records]
    return table(list(columns.values()), rows, title=title, detail=detail)


def _rounded(cell: Cell) -> Cell:
    if isinstance(cell, float):
        return float(round(cell)) if abs(cell) >= 100 else float(f"{cell:.3g}")
    return cell
