"""Compare `vision-rag index --local` with its parts: decoding and the forward pass.

    python -m benchmarks.indexing

Each turn decodes and preprocesses all pictures, indexes the same files into a fresh collection, and
runs this project's image tower over as many pictures. Between the turns OpenCLIP's model runs alone
in a process of its own (`benchmarks.forward`). The parts alternate because shared machines vary in
speed. Indexing should take little longer than the slower of decoding and the model alone.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

from benchmarks.forward import alone, best_rates
from benchmarks.support.command import parse, parser, report, say
from benchmarks.support.inputs import checkpoint, encoded, photo
from benchmarks.support.record import table, table_of
from bento import Encoder, Settings
from bento.encoder.cpus import compute_on
from rag.cli.parser import open_backend
from rag.cli.parser import parse as parse_command

_PICTURES: Final = 2000
_TURNS: Final = 6
_ALONE_SECONDS: Final = 8.0
_SIZE: Final = (320, 240)
_BATCH: Final = 32
_BOUND: Final = 1.08
_THREADS: Final = os.cpu_count() or 1


def timed(what: str, call: Callable[[], Any]) -> float:
    """Return the duration of a call in seconds."""
    say(what)
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def decode_all(encoder: Encoder, files: Sequence[Path]) -> None:
    """Read, decode and preprocess all files on as many threads as there are cores."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(encoder.preprocess, files):
            pass


def forward_all(encoder: Encoder, count: int, picture: Any) -> None:
    """Run the image tower over `count` pictures, with one batch on each lane."""
    lanes = encoder.image.lanes
    batches = [[picture] * min(_BATCH, count - start) for start in range(0, count, _BATCH)]
    with ThreadPoolExecutor(lanes, "lane", compute_on, (max(1, _THREADS // lanes),)) as pool:
        for _ in pool.map(encoder.image.embed, batches):
            pass


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(parser(__doc__), argv)
    count, turns = (100, 2) if options.quick else (_PICTURES, _TURNS)
    model = checkpoint(options.model)
    with tempfile.TemporaryDirectory() as temporary, alone(options) as measure:
        folder = Path(temporary)
        pictures = folder / "pictures"
        pictures.mkdir()
        say(f"drawing {count} pictures")
        files = [pictures / f"{n:05}.jpg" for n in range(count)]
        for n, file in enumerate(files):
            file.write_bytes(encoded(photo(n, *_SIZE)))
        os.environ |= {
            "MODEL_NAME": model,
            "DEVICE": options.device,
            "QDRANT_PATH": str(folder / "qdrant"),
        }
        encoder = Encoder.load(Settings(model_name=model, device=options.device))
        picture = encoder.preprocess(files[0])
        forward_all(encoder, 2 * _BATCH, picture)

        def model_alone() -> dict[str, Any]:
            say("the model alone, as OpenCLIP has it")
            seconds = _ALONE_SECONDS / (10 if options.quick else 1)
            return measure("image", encoder.image.dtype, seconds)

        backend = open_backend(local=True)
        try:
            rows, limits = [], [model_alone()]
            for n in range(turns):
                name = ["--collection", f"turn{n}"]
                command = parse_command(["index", str(pictures), "--local", *name])
                run = partial(command.run, backend, command)
                rows.append(
                    {
                        "decode": timed("decoding", lambda: decode_all(encoder, files)),
                        "index": timed("indexing", run),
                        "forward": timed("forward", lambda: forward_all(encoder, count, picture)),
                        "again": timed("indexing the same again", run),
                    }
                )
                limits.append(model_alone())
        finally:
            backend.close()
    for row, rate in zip(rows, map(mean, pairwise(best_rates(limits))), strict=True):
        row["alone"] = count / rate
        row["ratio"] = row["index"] / max(row["decode"], row["alone"])
        row["own_ratio"] = row["index"] / max(row["decode"], row["forward"])
    medians = {key: median(row[key] for row in rows) for key in rows[0]}
    columns = {
        "decode": "decoding, s",
        "alone": "the model alone, s",
        "forward": "the service's own forward, s",
        "index": "indexing, s",
        "again": "the same again, s",
        "ratio": "indexing over the model alone",
        "own_ratio": "over the service's own forward",
    }
    shown = table(
        ("measured, median of the turns", "reached", "bound"),
        [
            ("pictures/s", count / medians["index"], None),
            ("time over that of the model alone", medians["ratio"], f"at most {_BOUND}"),
            ("time over that of the service's own forward", medians["own_ratio"], None),
        ],
    )
    turned = table_of(columns, rows, title="The turns", detail=True)
    report("indexing", options, [shown, turned], {"rows": rows, **medians})


if __name__ == "__main__":
    main()
