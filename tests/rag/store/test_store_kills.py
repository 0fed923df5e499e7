"""The embedded store under `kill -9` while it fills, publishes and drops versions."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rag.store.edge.store import EdgeStore
from rag.store.interface import Collection, ModelIdentity
from tests.support.paths import ROOT
from tests.support.rag.engines import CLIP, OTHER, make_points, run, script

pytestmark = pytest.mark.service

POINTS = make_points(200)

# Each round fills the other version with the payloads [round, 0], publishes it, drops the old one
# and overwrites all payloads with [round, 1]. After each step, it prints an event and waits for a
# line.
ROUNDS = """
store, round = EdgeStore(Path(sys.argv[1])), int(sys.argv[2])
def say(event):
    print(event, round, flush=True)
    input()
points = make_points(200)
while True:
    new, old = (CLIP, OTHER) if round % 2 else (OTHER, CLIP)
    collection = store.open("a", new, staged=True)
    collection.upsert([replace(p, payload={"at": [round, 0]}) for p in points])
    say("filled")
    store.publish("a", new)
    say("published")
    store.drop("a", old.generation)
    say("dropped")
    assert collection.overwrite_payloads({p.id: {"at": [round, 1]} for p in points}) == 200
    say("overwritten")
    round += 1
"""


def identity_of(round: int) -> ModelIdentity:
    return CLIP if round % 2 else OTHER


# The duration in seconds of the step that follows each event.
STEPS = {"filled": 0.001, "published": 0.006, "dropped": 0.005, "overwritten": 0.03}


def run_and_kill(folder: Path, round: int, within: str, after: float) -> tuple[str, int]:
    """Run rounds, kill the process `after` seconds into the step after the event `within`.

    Return the last event and its round.
    """
    command = [*script(ROUNDS), str(folder), str(round)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        said = ""
        while not said.startswith(within):
            said = process.stdout.readline()
            assert said, process.stderr.read()
            process.stdin.write("\n")
            process.stdin.flush()
        time.sleep(after)
        process.kill()
        said = process.stdout.read() or said  # the step may have finished
        assert process.stderr.read() == ""
    event, last = said.split()
    return event, int(last)


def payloads(collection: Collection) -> list[Any]:
    records, following = collection.scroll()
    assert following is None
    assert {record.id for record in records} == {p.id for p in POINTS}
    assert collection.count() == len(POINTS)
    for point in POINTS[::50]:
        assert collection.query(point.vector, 1)[0].id == point.id
    return [tuple(record.payload["at"]) for record in records]


def check(store: EdgeStore, event: str, round: int) -> int:
    """Check that the store fits the last event, and return the published round."""
    published = store.published("a")
    if published is None:
        assert (event, round) == ("filled", 0)
        return -1
    mine, others = identity_of(round), store.generations("a")[1:]
    if event == "filled" and published.identity != mine:  # not yet published
        assert set(payloads(published)) == {(round - 1, 1)}
        assert [set(payloads(other)) for other in others] == [{(round, 0)}]
        return round - 1
    assert published.identity == mine
    if event == "overwritten":
        assert set(payloads(published)) == {(round, 1)}
    elif event == "dropped":
        assert set(payloads(published)) <= {(round, 0), (round, 1)}
        assert others == []
    else:
        assert set(payloads(published)) == {(round, 0)}
        assert all(set(payloads(other)) == {(round - 1, 1)} for other in others)
    return round


@pytest.mark.parametrize("repeats", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_after_a_kill_one_complete_version_is_published(folder: Path, repeats: int) -> None:
    rng = random.Random(0)
    published = -1
    for within in [*STEPS] * repeats:
        after = rng.uniform(0, STEPS[within])
        event, round = run_and_kill(folder, published + 1, within, after)
        with closing(EdgeStore(folder)) as store:
            published = check(store, event, round)
        left = {p.name for p in (folder / "a").glob(".[cd]*")}
        assert left == set()


# Publishes and drops, but is killed just before one of the changes to folders.
PUBLISH_AND_DROP = """
store, left = EdgeStore(Path(sys.argv[1])), int(sys.argv[2])
def kill(event, args):
    global left
    if event in ("os.remove", "os.symlink", "os.rename", "os.rmdir"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
store.publish("a", OTHER)
store.drop("a", CLIP.generation)
"""


@pytest.mark.parametrize(
    "steps", [(1, 4, 15), pytest.param(tuple(range(1, 16)), marks=pytest.mark.slow)]
)
def test_a_kill_while_publishing_and_dropping(folder: Path, steps: tuple[int, ...]) -> None:
    seen = set()
    with closing(EdgeStore(folder / "before")) as store:
        store.open("a", CLIP).upsert(POINTS)
        store.open("a", OTHER, staged=True).upsert(POINTS[:100])
    for step in steps:
        path = folder / str(step)
        shutil.copytree(folder / "before", path, symlinks=True)
        killed = run(PUBLISH_AND_DROP, path, step)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with closing(EdgeStore(path)) as store:
            held = [(c.identity, c.count()) for c in store.generations("a")]
            published = store.published("a")
            assert published is not None
            seen.add((published.identity, len(held)))
            assert set(held) <= {(CLIP, 200), (OTHER, 100)}
            store.publish("a", OTHER)
            store.drop("a", CLIP.generation)
            assert [c.count() for c in store.generations("a")] == [100]
        assert {p.name for p in (path / "a").iterdir()} == {OTHER.generation, "published"}
        shutil.rmtree(path)
    assert seen == {(CLIP, 2), (OTHER, 2), (OTHER, 1)}
