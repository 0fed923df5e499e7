"""A well-behaved client: `python -m benchmarks.attack.neighbour URL`, until its input ends.

It searches and asks `/livez`, and repeats what is answered 429, as the project's client does. It
prints its latencies in seconds, and how many answers it lost, as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Final

import httpx

_PATIENCE: Final = 10.0  # seconds until an answer counts as lost
_PAUSE: Final = 0.05  # seconds


class Neighbour:
    """Sends requests until `ended` is set."""

    def __init__(self, url: str) -> None:
        self.ended = threading.Event()
        self.latencies: dict[str, list[float]] = {"search": [], "livez": []}
        self.lost = 0
        self._url = url

    def search(self) -> None:
        self._send("search", "POST", "/search", {"text": "a red circle", "top_k": 5})

    def livez(self) -> None:
        self._send("livez", "GET", "/livez", None)

    def _send(self, kind: str, method: str, path: str, body: object) -> None:
        with httpx.Client(base_url=self._url, timeout=_PATIENCE) as client:
            while not self.ended.wait(_PAUSE):
                started = time.monotonic()
                if self._answered(client, method, path, body, started + _PATIENCE):
                    self.latencies[kind].append(time.monotonic() - started)
                else:
                    self.lost += 1

    def _answered(
        self, client: httpx.Client, method: str, path: str, body: object, deadline: float
    ) -> bool:
        while time.monotonic() < deadline:
            try:
                answer = client.request(method, path, json=body)
            except httpx.RemoteProtocolError:  # an idle connection was closed
                continue
            except httpx.HTTPError:
                return False
            if answer.status_code != 429:
                return answer.status_code == 200
            time.sleep(min(float(answer.headers.get("Retry-After", 1)), 1.0))
        return False


def main() -> None:
    neighbour = Neighbour(sys.argv[1])
    threads = [threading.Thread(target=call) for call in (neighbour.search, neighbour.livez)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    neighbour.ended.set()
    for thread in threads:
        thread.join()
    print(json.dumps({**neighbour.latencies, "lost": neighbour.lost}))


if __name__ == "__main__":
    main()
