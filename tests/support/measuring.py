"""What decoding costs: `python -m tests.support.measuring FILE…` prints a line of JSON for each.

Each file is decoded in a process of its own, a copy of one that has done nothing yet, so that what
it adds to the memory is seen.
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
    """Decode a file, and return what came of it, the added bytes and the seconds of CPU."""
    data = file.read_bytes()
    before, started = getrusage(RUSAGE_SELF).ru_maxrss, time.process_time()
    status, said = 200, ""
    try:
        decode_image(
            data,
            max_bytes=LIMITS["max_image_bytes"].default,
            max_pixels=LIMITS["max_image_pixels"].default,
        )
    except EncoderError as error:
        status, said = error.status, str(error)
    seconds = time.process_time() - started
    added = 1024 * (getrusage(RUSAGE_SELF).ru_maxrss - before)
    return {"name": file.name, "status": status, "said": said, "bytes": added, "seconds": seconds}


def main() -> None:
    for name in sys.argv[1:]:
        if child := os.fork():
            os.waitpid(child, 0)
        else:
            os.write(1, json.dumps(cost(Path(name))).encode() + b"\n")
            os._exit(0)


if __name__ == "__main__":
    main()
