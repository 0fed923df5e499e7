"""`python -m bento.doctor`: check whether this machine can run the service as configured."""

from __future__ import annotations

import argparse
import io
import json
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from bento.contract.errors import describe
from bento.doctor.checks import (
    Finding,
    Machine,
    check_container,
    check_cuda,
    check_driver,
    check_memory,
    check_port,
    check_python,
    check_qdrant,
    check_torch,
    check_weights,
)
from bento.doctor.probe import LOOK_SECONDS, Seen, words
from bento.settings import Settings
from rag.settings import RagSettings

S = TypeVar("S", bound=BaseSettings)
T = TypeVar("T")


def examine(machine: Machine) -> dict[str, Finding]:
    """Return the findings by the names of the checks. Unusable settings leave out some checks."""
    settings, wrong = _read(Settings)
    qdrant, wrong_too = _read(RagSettings)
    device = settings.device if settings else "auto"
    name, pretrained = (settings.model_name, settings.model_pretrained) if settings else ("", "")
    seen = _bounded(
        LOOK_SECONDS + 5,
        lambda: machine.look(name, pretrained, device),
        lambda why: Seen(torch_error=why, model_error=why, driver_error=why, devices_error=why),
    )
    checks: dict[str, Callable[[], Finding]] = {}
    if wrong or wrong_too:
        remedy = "correct it in the environment or in .env; .env.example shows the usual values"
        found = "; ".join(filter(None, (wrong, wrong_too)))
        checks["settings"] = partial(Finding, "failed", found, remedy)
    checks["python"] = partial(check_python, machine)
    checks["GPU driver"] = partial(check_driver, device, seen)
    checks["CUDA"] = partial(check_cuda, device, seen)
    checks["torch sees the GPU"] = partial(check_torch, device, seen)
    if settings:
        checks["memory"] = partial(check_memory, settings, seen, machine)
    checks["container runtime"] = partial(check_container, seen, machine)
    if settings:
        checks["weights"] = partial(check_weights, settings, seen, machine)
    if qdrant:
        workers = settings.workers if settings else 1
        checks["Qdrant"] = partial(check_qdrant, qdrant, workers, machine)
    if settings:
        checks["port"] = partial(check_port, settings, machine)
    failed = partial(Finding, "failed", remedy="check this by hand: the check itself failed")
    return {name: _bounded(machine.seconds, check, failed) for name, check in checks.items()}


def _read(kind: type[S]) -> tuple[S | None, str]:
    """Return the settings and no error, or None and a description of the error."""
    try:
        return kind(), ""
    except ValidationError as error:
        return None, describe(error)
    except (OSError, ValueError) as error:  # the .env file is not readable
        return None, f".env: {words(error)}"


def _bounded(seconds: float, work: Callable[[], T], otherwise: Callable[[str], T]) -> T:
    """Return the result of `work`, or `otherwise(reason)` if it raises or takes too long."""
    results: list[T] = []

    def run_it() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - a broken check must not hide the others
            results.append(otherwise(words(error)))

    thread = threading.Thread(target=run_it, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else otherwise(f"no answer within {seconds:.0f} s")


def main(argv: Sequence[str] | None = None, machine: Machine | None = None) -> int:
    """Print the findings and return the exit status: 0, or 1 if a required check failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bento.doctor",
        description="Check whether this machine can run the service with the settings from the "
        "environment or .env: Python, GPU, memory, weights, Qdrant and port. The check changes "
        "and downloads nothing.",
        epilog="Exit status: 0 if this machine can run the service, 1 if a required check failed.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object instead of a table"
    )
    options = parser.parse_args(argv)
    findings = examine(machine or Machine())
    ok = all(finding.status != "failed" for finding in findings.values())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the encoding may lack ✓
    if options.json:
        checks = [{"name": name, **finding._asdict()} for name, finding in findings.items()]
        print(json.dumps({"ok": ok, "checks": checks}))
    else:
        _print_table(findings)
        print(
            "This machine can run the service."
            if ok
            else "This machine cannot run the service: fix the failed checks."
        )
    return 0 if ok else 1


def _print_table(findings: dict[str, Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for heading in ("", "check", "found", "remedy"):
        table.add_column(heading, justify="left", overflow="fold")
    marks = {
        "ok": Text("✓", "green"),
        "failed": Text("✗", "bold red"),
        "not_needed": Text("–", "dim"),
    }
    for name, finding in findings.items():
        table.add_row(marks[finding.status], name, Text(finding.found), Text(finding.remedy))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
