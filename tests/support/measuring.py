"""Measure the cost of decoding: `python -m tests.support.measuring FILE…`.

This prints a line of JSON for each file. Each is decoded in a fork of this process, so that the
memory of other files does not hide its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

from bento.contract.errors import EncoderError
from bento.encoder.images import decode_image
from bento.settings import Settings

LIMITS = Settings.model_fields


def cost(file: Path) -> dict[str, str | int | float]:
    """Decode a file, and return its HTTP status, its error, the added bytes and the CPU seconds."""
    data = file.read_bytes()
    before, started = getrusage(RUSAGE_SELF).ru_maxrss, time.process_time()
    status, message = 200, ""
    try:
        decode_image(
            data,
            max_bytes=LIMITS["max_image_bytes"].default,
            max_pixels=LIMITS["max_image_pixels"].default,
        )
    except EncoderError as error:
        status, message = error.status, str(error)
    seconds = time.process_time() - started
    added = 1024 * (getrusage(RUSAGE_SELF).ru_maxrss - before)
    return {
        "name": file.name,
        "status": status,
        "error": message,
        "bytes": added,
        "seconds": seconds,
    }


def main() -> None:
    for name in sys.argv[1:]:
        if child := os.fork():
            os.waitpid(child, 0)
        else:
            os.write(1, json.dumps(cost(Path(name))).encode() + b"\n")
            os._exit(0)


if __name__ == "__main__":
    main()
