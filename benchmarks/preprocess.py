"""Measure decoding, resizing and cropping of a picture.

    python -m benchmarks.preprocess

The service's way is compared with JPEG decoding at a fraction of the size (`Image.draft`): how much
faster that is, and how close its embeddings are to the exact ones.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import numpy as np
from PIL import Image

from benchmarks.support.command import parse, parser, report, say
from benchmarks.support.inputs import checkpoint, encoded, photo
from benchmarks.support.record import table_of
from bento import Encoder, Settings

_PICTURES: Final = (
    ("JPEG", 320, 240),
    ("JPEG", 1920, 1080),
    ("JPEG", 4000, 3000),
    ("PNG", 1920, 1080),
)
_DIFFERENT: Final = 4  # pictures of each kind
_THREADS: Final = os.cpu_count() or 1

Prepare = Callable[[bytes], Any]


def drafted(data: bytes, side: int) -> Image.Image:
    """Decode a JPEG at the smallest scale that still covers the model's input."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (side, side))
    return image.convert("RGB")


def milliseconds(prepare: Prepare, files: list[bytes], seconds: float, threads: int) -> float:
    """Return the wall time per picture in ms, with all threads busy."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(prepare, files))
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            done += len(list(pool.map(prepare, files * threads)))
        return (time.perf_counter() - started) / done * 1000


def prepare_drafted(encoder: Encoder, side: int, data: bytes) -> Any:
    """Prepare a JPEG that is decoded at a fraction of the size."""
    return encoder.preprocess(drafted(data, side))


def cosine(encoder: Encoder, files: list[bytes]) -> float:
    """Return the smallest cosine between the embeddings of exact and of drafted pictures."""
    side = max(encoder.preprocess(files[0]).shape)
    exact = encoder.encode_images(files)
    scaled = encoder.encode_images([drafted(data, side) for data in files])
    return float(np.min(np.sum(exact * scaled, axis=1)))


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(parser(__doc__), argv)
    seconds = 0.3 if options.quick else 5.0
    encoder = Encoder.load(Settings(model_name=checkpoint(options.model), device=options.device))
    # With random weights all pictures have nearly the same embedding, so compare a trained model's.
    trained = Encoder.load(Settings(model_name=checkpoint("shapes"), device=options.device))
    rows = []
    for format, width, height in _PICTURES:
        say(f"{format} of {width} x {height}")
        files = [encoded(photo(seed, width, height), format) for seed in range(_DIFFERENT)]
        row: dict[str, Any] = {
            "picture": f"{format} {width} x {height}",
            "kilobytes": len(files[0]) / 1000,
            "ms": milliseconds(encoder.preprocess, files, seconds, 1),
            "pool_ms": milliseconds(encoder.preprocess, files, seconds, _THREADS),
        }
        if format == "JPEG":
            side = max(encoder.preprocess(files[0]).shape)
            scaled = partial(prepare_drafted, encoder, side)
            row["draft_ms"] = milliseconds(scaled, files, seconds, 1)
            row["draft_speedup"] = row["ms"] / row["draft_ms"]
            row["draft_cosine"] = cosine(trained, files)
        rows.append(row)
    columns = {
        "picture": "picture",
        "kilobytes": "kB",
        "ms": "ms, one thread",
        "pool_ms": f"ms, {_THREADS} threads",
        "draft_ms": "ms, drafted",
        "draft_speedup": "times faster",
        "draft_cosine": "cosine to exact (bundled model)",
    }
    shown = [{**row, "draft_cosine": _five_digits(row.get("draft_cosine"))} for row in rows]
    report("preprocess", options, [table_of(columns, shown)], rows)


def _five_digits(value: float | None) -> str | None:
    return None if value is None else f"{value:.5f}"


if __name__ == "__main__":
    main()
