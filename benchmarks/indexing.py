"""Indexing against what it is made of: python -m benchmarks.indexing

In one run: decoding and preprocessing all pictures, the forward pass over all of them, and
`vision-rag index --local` over the same files into a fresh embedded store. The last should take
little longer than the slower of the first two.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import checkpoint, encoded, parse, parser, photo, report, say, table_of
from bento import Encoder, Settings
from rag.cli import open_backend
from rag.cli import parse as parse_command

_PICTURES: Final = 2000
_SIZE: Final = (320, 240)
_BATCH: Final = 32
_BOUND: Final = 1.08
_THREADS: Final = os.cpu_count() or 1


def timed(what: str, call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
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
    """Run the image tower over as many pictures, in batches."""
    for start in range(0, count, _BATCH):
        encoder.image.embed([picture] * min(_BATCH, count - start))


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(parser(__doc__), argv)
    count = 100 if options.quick else _PICTURES
    model = checkpoint(options.model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures = folder / "pictures"
        pictures.mkdir()
        say(f"drawing {count} pictures")
        files = [pictures / f"{n:05}.jpg" for n in range(count)]
        for n, file in enumerate(files):
            file.write_bytes(encoded(photo(n, *_SIZE)))
        encoder = Encoder.load(Settings(model_name=model, device=options.device))
        picture = encoder.preprocess(files[0])
        forward_all(encoder, 2 * _BATCH, picture)
        decode = timed("decoding", lambda: decode_all(encoder, files))
        before = timed("forward", lambda: forward_all(encoder, count, picture))
        os.environ |= {
            "MODEL_NAME": model,
            "DEVICE": options.device,
            "QDRANT_PATH": str(folder / "qdrant"),
        }
        command = parse_command(["index", str(pictures), "--local"])
        backend = open_backend(local=True)
        try:
            whole = timed("indexing", lambda: command.run(backend, command))
            again = timed("the same again", lambda: command.run(backend, command))
        finally:
            backend.close()
        after = timed("forward", lambda: forward_all(encoder, count, picture))
    forward = (before + after) / 2
    rows = [
        {"what": "decoding and preprocessing", "seconds": decode},
        {"what": "forward, before", "seconds": before},
        {"what": "forward, after", "seconds": after},
        {"what": "vision-rag index --local, the model loaded", "seconds": whole},
        {"what": "the same again, nothing new", "seconds": again},
    ]
    ratio = whole / max(decode, forward)
    for row in rows:
        row["rate"] = count / float(str(row["seconds"]))
    columns = {"what": "what", "seconds": "s", "rate": "pictures/s"}
    shown = table_of(columns, rows)
    shown += f"\nindexing over the slower of decoding and forward: {ratio:.3f} (at most {_BOUND})\n"
    report("indexing", options, shown, {"rows": rows, "ratio": ratio})


if __name__ == "__main__":
    main()
