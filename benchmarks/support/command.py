"""The command line of a benchmark, and its report: tables, one line of JSON, a result file."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.support.inputs import checkpoint
from benchmarks.support.machine import hardware, versions
from benchmarks.support.record import RESULTS, Result, Table


def say(text: str) -> None:
    """Show progress."""
    print(text, file=sys.stderr, flush=True)


def parser(
    description: str | None, *, model: bool = True, seconds: tuple[float, float] | None = None
) -> argparse.ArgumentParser:
    """Return a parser with the options that the benchmarks share.

    `seconds` is the default duration of a step, without and with --quick.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--quick", action="store_true", help="check in under a minute that the benchmark runs"
    )
    made.add_argument(
        "--save",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="PATH",
        help="write a result file (default PATH: benchmarks/results/NAME.json)",
    )
    if seconds:
        usual, quick = seconds
        made.add_argument(
            "--seconds",
            type=float,
            help=f"duration of each step in seconds (default: {usual:g}; with --quick: {quick:g})",
        )
        made.set_defaults(usual_seconds=seconds)
    if model:
        made.add_argument(
            "--model",
            help="an OpenCLIP architecture, served with random weights, or `shapes`, the bundled "
            "model (default: ViT-B-32; with --quick: shapes)",
        )
        made.add_argument(
            "--device",
            choices=("auto", "cpu", "cuda"),
            default="auto",
            help="auto uses a GPU if there is one (default)",
        )
    return made


def parse(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments, and keep for the report what it needs."""
    given = list(sys.argv[1:] if argv is None else argv)
    options = made.parse_args(given)
    if options.quick and options.save:
        made.error("--save keeps measurements, and --quick makes none: leave out one of them")
    options.argv = given
    options.title = (made.description or "").partition("\n")[0].removesuffix(".")
    options.load = os.getloadavg()[0]
    if getattr(options, "model", "") is None:
        options.model = "shapes" if options.quick else "ViT-B-32"
    if getattr(options, "seconds", 0.0) is None:
        options.seconds = options.usual_seconds[options.quick]
    return options


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the environment of a service with this model and device."""
    return {"MODEL_NAME": checkpoint(options.model), "DEVICE": options.device}


def report(
    benchmark: str,
    options: argparse.Namespace,
    tables: Sequence[Table],
    results: Any,
    notes: Sequence[str] = (),
) -> None:
    """Print tables, notes and, as the last line, everything as JSON; with --save write a file.

    A file that is replaced keeps its title.
    """
    path = None
    if options.save:
        path = RESULTS / f"{benchmark}.json" if options.save == Path() else options.save
    now = datetime.now(UTC)
    saved = Result(
        title=Result.read(path).title if path and path.exists() else options.title,
        command=shlex.join(["python", "-m", f"benchmarks.{benchmark}", *_measured(options.argv)]),
        date=now.date(),
        hardware=hardware(options.load),
        versions=versions(),
        tables=list(tables),
        notes=list(notes),
    )
    if path:
        saved.write(path)
        say(f"saved in {path}")
    record = {
        "benchmark": benchmark,
        "command": saved.command,
        "date": now.isoformat(timespec="seconds"),
        "hardware": saved.hardware,
        "versions": saved.versions,
        "model": getattr(options, "model", None),
        "results": results,
    }
    shown = "\n".join([*(table.markdown() for table in tables), *notes])
    print(f"{shown}\n{json.dumps(record)}", flush=True)


def _measured(argv: Sequence[str]) -> list[str]:
    """Return the arguments without `--save` and its path."""
    kept, saves = [], False
    for argument in argv:
        if saves and not argument.startswith("-"):
            saves = False
            continue
        saves = argument == "--save"
        if not saves and not argument.startswith("--save="):
            kept.append(argument)
    return kept
