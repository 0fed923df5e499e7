"""How long a cold start takes: python -m benchmarks.startup

From starting `bentoml serve` to `/livez` and `/readyz`, beside fresh interpreters that only
import torch, or import OpenCLIP and load the same weights.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Final

from benchmarks.harness import (
    environment,
    free_port,
    parse,
    parser,
    report,
    running,
    say,
    table,
    wait_for,
)

_SERVE: Final = (sys.executable, "-m", "bentoml", "serve", "service:VisionEncoder")


def serve(variables: dict[str, str]) -> tuple[float, float]:
    """Return the seconds to `/livez` and to `/readyz`."""
    began = time.perf_counter()
    with running(_SERVE, free_port(), "/livez", **variables) as server:
        live = time.perf_counter() - began
        if not wait_for(server, "/readyz"):
            raise RuntimeError("the service is alive and never got ready")
        return live, time.perf_counter() - began


def interpreter(code: str) -> float:
    """Return the seconds that a fresh interpreter takes for some code."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(parser(__doc__), argv)
    variables = environment(options)
    load = f"import open_clip; open_clip.create_model_from_pretrained({variables['MODEL_NAME']!r})"
    seconds: dict[str, list[float]] = {
        name: []
        for name in (
            "bentoml serve to /livez",
            "bentoml serve to /readyz",
            "import torch",
            "import open_clip and load the weights",
        )
    }
    for run in range(1 if options.quick else 3):
        say(f"run {run + 1}")
        figures = (*serve(variables), interpreter("import torch"), interpreter(load))
        for name, figure in zip(seconds, figures, strict=True):
            seconds[name].append(figure)
    shown = table(
        ("from nothing", "s (median)", "runs"),
        [
            (name, median(runs), ", ".join(f"{run:.1f}" for run in runs))
            for name, runs in seconds.items()
        ],
    )
    report("startup", options, shown, seconds)


if __name__ == "__main__":
    main()
