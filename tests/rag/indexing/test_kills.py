"""Kill processes with `kill -9` at random moments of indexing, pruning and re-indexing."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rag import LocalBackend
from rag.store.edge.store import EdgeStore
from tests.support.paths import ROOT
from tests.support.rag.fakes import FakeEncoder

pytestmark = pytest.mark.service

FILES = 80
WORKERS = 4
MODELS = {"index": "old", "prune": "old", "reindex": "new"}

SCRIPT = """
import sys, time
from pathlib import Path
from rag import LocalBackend
from rag.store.edge.store import EdgeStore
from rag.indexing.backends import hold
from rag.indexing.run import carry_out, hash_sources
from rag.indexing.plan import make_plan, never
from rag.indexing.reindex import reindex
from rag.indexing.sources import find_sources
from tests.support.rag.fakes import FakeEncoder

what, top = sys.argv[1], Path(sys.argv[2])

class Slow(FakeEncoder):
    def encode_images(self, images):
        time.sleep(0.004)
        return super().encode_images(images)

encoder = Slow("new" if what == "reindex" else "old", top / f"{what}.log")
backend = LocalBackend(encoder, EdgeStore(top / "qdrant"))
ignore = lambda *progress: None
print("started", flush=True)
if what == "reindex":
    assert reindex(backend, "c", workers=4, drop_missing=False, progress=ignore).published
else:
    sources = find_sources([str(top / "pictures")], ())
    hashed, failures = hash_sources(sources, 4, ignore)
    is_gone = sources.is_gone if what == "prune" else never
    plan = make_plan(hashed, hold(backend, "c", "me"), is_gone)
    report = carry_out(plan, backend, "c", "me", 4, ignore)
    assert not failures and not report.failures
backend.close()
print("finished", flush=True)
"""


def start(what: str, top: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, what, str(top)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def run(what: str, top: Path, longest: float, chance: random.Random) -> int:
    """Start and kill a process until one finishes before its kill; return the number of kills."""
    killed = 0
    while True:
        process = start(what, top)
        if longest:
            time.sleep(chance.uniform(0, longest))
            process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        if "finished" in rest:
            return killed
        assert process.returncode == -signal.SIGKILL
        killed += 1


def fill(top: Path) -> None:
    """Write pictures. Every tenth is a copy of the one before."""
    folder = top / "pictures"
    folder.mkdir(parents=True)
    for n in range(FILES):
        (folder / f"{n:03}.png").write_text(f"picture {n - 1 if n % 10 == 9 else n}")


def change(top: Path) -> None:
    folder = top / "pictures"
    for n in range(0, FILES, 3):
        (folder / f"{n:03}.png").unlink()
    for n in range(1, FILES, 6):
        (folder / f"{n:03}.png").write_text(f"changed {n}")


def held(top: Path, model: str) -> dict[str, dict[str, Any]]:
    """Return all payloads by id, with file names instead of paths."""
    backend = LocalBackend(FakeEncoder(model), EdgeStore(top / "qdrant"))
    try:
        listed = {image.id: image.payload for image in backend.images("c")}
        assert backend.stats("c").points == len(listed)
        assert backend.stats("c").model == f"{model}/random"
    finally:
        backend.close()
    for payload in listed.values():
        del payload["indexed_at"]
        payload["image_path"] = Path(payload["image_path"]).name
        payload["duplicates"] = [Path(path).name for path in payload.get("duplicates", ())]
    return listed


def embedded(top: Path, what: str) -> Counter[str]:
    return Counter((top / f"{what}.log").read_text().split())


@pytest.mark.parametrize("least", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_runs_continue_and_give_the_same_result(tmp_path: Path, least: int) -> None:
    chance = random.Random(1)
    plain = tmp_path / "plain"
    wanted, took = {}, {}
    fill(plain)
    for what, model in MODELS.items():
        if what == "prune":
            change(plain)
        began = time.monotonic()
        run(what, plain, 0, chance)
        took[what] = time.monotonic() - began
        wanted[what] = held(plain, model)
    kills = Counter[str]()
    rounds = 0
    while kills.total() < least or min(kills[what] for what in MODELS) < least // 8:
        rounds += 1
        assert rounds <= 2 * least, kills
        top = tmp_path / f"killed-{rounds}"
        fill(top)
        for what, model in MODELS.items():
            if what == "prune":
                change(top)
            times = run(what, top, 0.6 * took[what], chance)
            kills[what] += times
            assert held(top, model) == wanted[what], what
            once, again = embedded(plain, what), embedded(top, what)
            assert again.keys() == once.keys()
            # A kill loses at most the pictures that were embedded but not yet written.
            assert again.total() - once.total() <= WORKERS * times, what
