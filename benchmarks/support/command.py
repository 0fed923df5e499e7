"""The command line of a benchmark, and its report: tables, and one line of JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.support.inputs import checkpoint


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
        "--quick", action="store_true", help="under a minute: a check, not a measurement"
    )
    if seconds:
        usual, quick = seconds
        made.add_argument(
            "--seconds",
            type=float,
            help=f"how long each step takes (default: {usual:g}; with --quick: {quick:g})",
        )
        made.set_defaults(usual_seconds=seconds)
    if model:
        made.add_argument(
            "--model",
            help="an OpenCLIP architecture, served with random weights, or shapes, the bundled "
            "model (default: ViT-B-32; with --quick: shapes)",
        )
        made.add_argument(
            "--device",
            choices=("auto", "cpu", "cuda"),
            default="auto",
            help="auto takes a GPU if there is one (default)",
        )
    return made


def parse(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments and keep them for the report."""
    given = list(sys.argv[1:] if argv is None else argv)
    options = made.parse_args(given)
    options.argv = given
    if getattr(options, "model", "") is None:
        options.model = "shapes" if options.quick else "ViT-B-32"
    if getattr(options, "seconds", 0.0) is None:
        options.seconds = options.usual_seconds[options.quick]
    return options


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the environment of a service with this model and device."""
    return {"MODEL_NAME": checkpoint(options.model), "DEVICE": options.device}


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a markdown table; floats keep three digits, None is a dash."""
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def table_of(columns: Mapping[str, str], records: Iterable[Mapping[str, Any]]) -> str:
    """Return a table of records. `columns` maps their keys to the headings."""
    return table(list(columns.values()), [[row.get(key) for key in columns] for row in records])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def report(benchmark: str, options: argparse.Namespace, shown: str, results: Any) -> None:
    """Print a table and, as the last line, everything as JSON."""
    record = {
        "benchmark": benchmark,
        "command": shlex.join(["python", "-m", f"benchmarks.{benchmark}", *options.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "model": getattr(options, "model", None),
        "results": results,
    }
    print(f"{shown}\n{json.dumps(record)}", flush=True)


def machine() -> dict[str, Any]:
    """Return the hardware and the versions of the libraries."""
    version = importlib.metadata.version
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "ram_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpu_name(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "open_clip": version("open_clip_torch"),
        "bentoml": version("bentoml"),
    }


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_name() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.partition("\n")[0].strip() or None
