"""Print docs/benchmarks.md from the result files.

Run `python -m benchmarks.results > docs/benchmarks.md` after a result file has changed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from benchmarks.support.record import RESULTS, TRIAL, Cell, Result, printed

MEASURES: Final = {
    "serving": (
        "`python -m benchmarks.serving`",
        "HTTP at 1 to 64 clients, against the model alone and a hand-written service",
    ),
    "overload": ("`make overload`", "four times the load that the service can answer"),
    "attack": (
        "`make attack`",
        "what a hostile client costs in memory and in others' time",
    ),
    "isolation": (
        "`python -m benchmarks.isolation`",
        "a text client alone, and beside 16 image clients",
    ),
    "loadtest": (
        "`make loadtest`",
        "a service under load, with objectives ([load tests](loadtests.md))",
    ),
    "forward": ("`python -m benchmarks.forward`", "the model alone: each tower, dtype and batch"),
    "batching": (
        "`python -m benchmarks.batching`",
        "the service's queues, BentoML's `batchable=True` and no batching",
    ),
    "framework": (
        "`python -m benchmarks.framework`",
        "CPU time of each of BentoML's layers per request",
    ),
    "preprocess": ("`python -m benchmarks.preprocess`", "decoding and resizing a picture"),
    "client": (
        "`python -m benchmarks.client`",
        "the Python clients against requests written by hand",
    ),
    "indexing": (
        "`python -m benchmarks.indexing`",
        "`vision-rag index --local` against decoding and the model alone",
    ),
    "search": (
        "`python -m benchmarks.search`",
        "the embedded store with 100,000 points: searches, reopening, memory",
    ),
    "startup": ("`python -m benchmarks.startup`", "a cold start, up to the first answer"),
    "memory": (
        "`python -m benchmarks.memory`",
        "memory of one worker with each of the recommended models",
    ),
    "soak": ("`make soak`", "growth of memory, open files and threads in 20 minutes"),
}
"""The benchmarks in the order of the page: the command, and what it measures.

A key is a result file's name without extension and variant.
"""

_OTHERS: Final = ("fidelity", "recall", "demo", "make", "decision")
_METHOD: Final = """\
Each `python -m benchmarks.NAME` has `--help` and `--quick`. `--save` writes a result file, and
`make docs` writes this page from those files, which hold further tables and the versions.

* The models have random weights, because speed does not depend on their values.
* "The model alone" is OpenCLIP's forward pass in a process of its own, in the service's dtype.
* Client, service and model share the cores. Ratios within one run say more than absolute figures.
* A generator in a process of its own sends the load. It warms up for 1 s, or for half of a shorter
  window, and checks the status of an answer, not its embedding.
* In the closed loop a client sends its next request when the last one is answered, also after a
  429. In the open loop requests arrive at random (Poisson), and a latency counts from the arrival.
"""
_NUMBER: Final = re.compile(r"\d[\d,]*(?:\.\d+)?")


def read_all(folder: Path = RESULTS) -> dict[str, Result]:
    """Return the results by file name without extension, in the order of `MEASURES`."""
    names = sorted((path.stem for path in folder.glob("*.json")), key=_place)
    return {name: Result.read(folder / f"{name}.json") for name in names}


def _place(name: str) -> tuple[int, str]:
    order = [*MEASURES, *_OTHERS]
    return order.index(name.partition("-")[0]), name


def known_numbers(folder: Path = RESULTS) -> set[str]:
    """Return all figures of the result files as printed, and those from 10 as whole numbers too."""
    numbers: set[str] = set()
    for result in read_all(folder).values():
        cells: list[Cell] = [*result.notes]
        for table in result.tables:
            cells += [cell for row in table.rows for cell in row]
        for cell in cells:
            numbers |= {found.rstrip(",") for found in _NUMBER.findall(printed(cell))}
    values = [float(number.replace(",", "")) for number in numbers]
    return numbers | {f"{value:,.0f}" for value in values if value >= 10}


def page(folder: Path = RESULTS) -> str:
    """Return docs/benchmarks.md.

    A result with one table of two columns has no section; its rows are in the last table.
    """
    results = read_all(folder)
    shown = {name: each for name, each in results.items() if not name.startswith("decision-")}
    small = {name: each for name, each in shown.items() if is_small(each)}
    large = {name: each for name, each in shown.items() if name not in small}
    gpu = [name for name in large if "h100" in name.split("-")]
    measures = [f"| {command} | {what} |\n" for command, what in MEASURES.values()]
    return "\n".join(
        (
            "# Benchmarks\n",
            _headline(results),
            "".join(("| benchmark | measures |\n| --- | --- |\n", *measures)),
            _METHOD,
            "## Two CPU cores\n",
            *(section(name, large[name]) for name in large if name not in gpu),
            "## One GPU\n",
            *(section(name, large[name]) for name in gpu),
            "## Other figures\n",
            "".join(
                ("| measured | result | by |\n| --- | --- | --- |\n", *map(rows, small.items()))
            ),
            "The [decisions](decisions/) refer to further result files, `decision-NUMBER.json`.\n",
        )
    )


def is_small(result: Result) -> bool:
    return len(result.tables) == 1 and len(result.tables[0].columns) == 2


def section(name: str, result: Result) -> str:
    """Return the section of a result: origin and notes, then the tables."""
    text = "<br>".join(filter(None, (f"{_origin(name, result)}.", " ".join(result.notes))))
    tables = [table.markdown() for table in result.tables if not table.detail]
    return "\n".join((f"### {result.title}\n{text}\n", *tables))


def rows(item: tuple[str, Result]) -> str:
    """Return the rows of a small result for the last table."""
    name, result = item
    (table,) = result.tables
    return "".join(
        f"| {printed(what)} | {printed(value)} | {_origin(name, result)} |\n"
        for what, value in table.rows
    )


def _origin(name: str, result: Result) -> str:
    """Return the command with a link to the file, the date and the hardware."""
    command = result.command if result.command == TRIAL else f"`{result.command}`"
    date = f"{result.date.day} {result.date:%B %Y}"
    return f"[{command}](../benchmarks/results/{name}.json), {date}, {result.hardware}"


def _headline(results: dict[str, Result]) -> str:
    """Return the page's first paragraph, with figures of the results."""
    images, texts, image, text = (
        printed(_figure(results["serving"], ("this service", kind, clients), column))
        for clients, column in ((32, "items/s"), (1, "p50 ms"))
        for kind in ("image", "text")
    )
    search = printed(_figure(results["search"], ("search p50",), "measured"))
    return (
        "How fast is the service? With ViT-B-32 on two CPU cores it answers 32 clients with "
        f"{images} images/s or {texts} texts/s.\n"
        f"A single client waits {image} ms for an image and {text} ms for a text. A search among "
        f"100,000 pictures takes {search} ms. These times are medians.\n"
    )


def _figure(result: Result, row: tuple[Cell, ...], column: str) -> Cell:
    """Return a cell of the first table: of the row that begins with `row`."""
    table = result.tables[0]
    (found,) = (each for each in table.rows if tuple(each[: len(row)]) == row)
    return found[table.columns.index(column)]


if __name__ == "__main__":
    print(page(), end="")
