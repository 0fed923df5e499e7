"""Play the corpus against the service in this process: `python -m tests.parity.in_process FILE`.

A new process is needed because the service reads its settings at its import. With API_KEY, the
corpus is played twice: with the key, then without it.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from tests.parity.playing import play


def main(file: Path) -> None:
    import service

    encoder: Any = service.VisionEncoder  # BentoML has no types
    with TestClient(
        encoder.to_asgi(), raise_server_exceptions=False, follow_redirects=False
    ) as client:
        deadline = time.monotonic() + 120
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        key = os.environ.get("API_KEY")
        played = [play(client, {"X-API-Key": key}), play(client)] if key else [play(client)]
        file.write_bytes(pickle.dumps([[tuple(answer) for answer in each] for each in played]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
