"""Measure the CPU time per request of each layer of BentoML.

    python -m benchmarks.framework

A service without a model answers 512 numbers to 8 connections, each time without another layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.support.command import parse, parser, report, say
from benchmarks.support.load import load
from benchmarks.support.record import table
from benchmarks.support.servers import serving

_CONNECTIONS: Final = 8
_MODELS: Final = "benchmarks.support.framework_service:Models"
_RESPONSES: Final = "benchmarks.support.framework_service:Responses"
_UVLOOP: Final = "uvloop and httptools"
_LAYERS: Final = ("access log", "tracing", "metrics")
_VARIANTS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("as BentoML sets it", _MODELS, ()),
    *((f"without {layer}", _MODELS, (layer,)) for layer in (*_LAYERS, _UVLOOP)),
    ("returning a ready response", _RESPONSES, ()),
    ("without the three, a ready response", _RESPONSES, _LAYERS),
)


def measure(target: str, without: Sequence[str], blocked: str, seconds: float) -> dict[str, Any]:
    """Return the mean CPU time per request in ms, the requests, requests/s and failures."""
    variables = {"FRAMEWORK_WITHOUT": ",".join(layer for layer in without if layer in _LAYERS)}
    if _UVLOOP in without:
        variables["PYTHONPATH"] = blocked
    with serving(target, **variables) as server:
        load(server.port, "text", clients=_CONNECTIONS, seconds=1.0)
        before = server.cpu_seconds()
        loaded = load(server.port, "text", clients=_CONNECTIONS, seconds=seconds)
        cpu_ms = 1000 * (server.cpu_seconds() - before) / loaded.requests
    return {
        "cpu_ms": cpu_ms,
        "requests": loaded.requests,
        "rate": loaded.rate,
        "failures": loaded.failures,
    }


def block_uvloop(folder: Path) -> str:
    """Fill a folder that, on PYTHONPATH, keeps uvicorn from importing uvloop and httptools."""
    for name in ("uvloop", "httptools"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text('raise ImportError("blocked")\n')
    return str(folder)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(parser(__doc__, model=False), argv)
    rounds, seconds = (1, 2.0) if options.quick else (3, 5.0)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name, _, _ in _VARIANTS}
    with tempfile.TemporaryDirectory() as temporary:
        blocked = block_uvloop(Path(temporary))
        for _ in range(rounds):  # each round has all variants, so that noise affects them alike
            for name, target, without in _VARIANTS:
                say(name)
                runs[name].append(measure(target, without, blocked, seconds))
    cpu_ms = {name: median(run["cpu_ms"] for run in done) for name, done in runs.items()}
    base = next(iter(cpu_ms.values()))
    shown = table(
        ("service", "CPU ms a request", "saved", "requests/s", "failures"),
        [
            (
                name,
                cpu_ms[name],
                base - cpu_ms[name],
                median(run["rate"] for run in done),
                sum(run["failures"] for run in done),
            )
            for name, done in runs.items()
        ],
    )
    report("framework", options, [shown], runs)


if __name__ == "__main__":
    main()
