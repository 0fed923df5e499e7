"""The result files, the page made of them, and the measured rates on the other pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
from pydantic import ValidationError

from benchmarks.results import known_numbers, page, read_all
from benchmarks.support.machine import cpu
from benchmarks.support.record import RESULTS, TRIAL, Result, Table, printed, table
from tests.support.paths import ROOT

NAMES: Final = sorted(path.stem for path in RESULTS.glob("*.json"))
PAGES: Final = sorted(
    path
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    if path.name not in {"api.md", "benchmarks.md", "settings.md"}
)
NUMBER: Final = r"\d+(?:,\d{3})*(?:\.\d+)?"
RATE: Final = re.compile(
    rf"({NUMBER}(?:(?:, | to | and | or ){NUMBER})*) "
    r"(?:[A-Z]\w+ )?(?:[a-z]+/s\b|times as (?:fast|many|quick)\b)"
)
"""A measured rate: numbers before a unit such as `images/s`, or before "times as fast".

Rates that a user sets are written "requests a second", and are not meant.
"""
CPU_INFO: Final = "model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f amx_tile amx_bf16\n\n"


def rates(text: str) -> list[str]:
    """Return the numbers of the measured rates in a text."""
    return [number for found in RATE.findall(text) for number in re.findall(NUMBER, found)]


def test_the_page_is_generated_from_the_result_files() -> None:
    assert (ROOT / "docs" / "benchmarks.md").read_text() == page(), (
        "run: python -m benchmarks.results > docs/benchmarks.md"
    )


def test_there_are_result_files() -> None:
    assert len(NAMES) > 20
    assert list(read_all()) != NAMES  # in the order of the page
    assert sorted(read_all()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_result_names_an_existing_command_or_is_a_trial(name: str) -> None:
    result = Result.read(RESULTS / f"{name}.json")
    assert result.title
    assert result.hardware
    assert result.tables
    assert all(each.rows for each in result.tables)
    if result.command == TRIAL:
        return
    module = re.match(r"python -m ([\w.]+)", result.command)
    if module:
        path = ROOT / module[1].replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    else:
        target = re.match(r"(?:\w+=\S+ )*make ([a-z-]+)", result.command)
        assert target, result.command
        assert re.search(rf"(?m)^{target[1]}:", (ROOT / "Makefile").read_text())


def test_every_decision_links_the_file_with_its_figures() -> None:
    names = [name for name in NAMES if name.startswith("decision-")]
    assert names
    for name in names:
        number = name.removeprefix("decision-")
        (decision,) = (ROOT / "docs" / "decisions").glob(f"{number}-*.md")
        assert f"benchmarks/results/{name}.json" in decision.read_text()


def test_every_measured_rate_on_a_page_is_in_a_result_file() -> None:
    known = known_numbers()
    found = {
        f"{path.relative_to(ROOT)}: {number}": number
        for path in PAGES
        for number in rates(path.read_text())
    }
    assert len(found) > 5
    assert [where for where, number in found.items() if number not in known] == []


def test_rates_are_found_in_prose_and_rates_to_set_are_not() -> None:
    assert rates("answers 1,528 images/s, or 198 and 182 English queries/s") == [
        *("1,528", "198", "182")
    ]
    assert rates("55.2 to 87 images/s; 1.9 times as fast") == ["55.2", "87", "1.9"]
    assert rates("RATE=4, 4 requests a second, 60 s, 2 GB, 3 times the load") == []


def test_figures_are_known_as_printed_and_as_whole_numbers(tmp_path: Path) -> None:
    made = table(("a", "b"), [("x", 1234.5), ("y", 87.23), ("z", 1.234), ("142 pictures/s", None)])
    result(made).write(tmp_path / "search.json")
    known = known_numbers(tmp_path)
    assert {"1,234", "87.2", "87", "1.23", "142", "7.5"} <= known
    assert not {"1", "1.2", "1.234"} & known


def result(made: Table) -> Result:
    return Result.model_validate(
        {
            "title": "T",
            "command": "make test",
            "date": "2026-11-27",
            "hardware": "a machine",
            "versions": {"python": "3.11.7"},
            "tables": [made],
            "notes": ["It took 7.5 s."],
        }
    )


def test_a_result_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = result(table(("a", "b"), [("x", 0.5), ("y", 3), ("z", None)]))
    written.write(tmp_path / "folder" / "a.json")
    assert Result.read(tmp_path / "folder" / "a.json") == written
    assert '["x", 0.5],\n' in (tmp_path / "folder" / "a.json").read_text()


@pytest.mark.parametrize("wrong", [{"rows": [["a"]]}, {"rows": [["a", 1]], "colums": []}])
def test_a_wrong_table_is_rejected(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Table.model_validate({"columns": ["a", "b"], **wrong})


def test_cells_are_printed_with_three_digits() -> None:
    cells = (None, "a", 7, 17384, 0.12345, 99.96, 1234.5, -0.2034)
    assert [printed(cell) for cell in cells] == [
        *("–", "a", "7", "17,384", "0.123", "100", "1,234", "-0.203")
    ]


def test_a_cpu_is_described_by_name_cores_and_instruction_sets() -> None:
    name, cores, *sets = cpu(CPU_INFO).split(", ")
    assert name == "Some CPU"
    assert re.fullmatch(r"\d+ cores", cores)
    assert sets == ["AVX2", "AVX-512", "AMX", "BF16"]
    assert cpu("").split(", ")[-1].endswith("cores")
