"""The embedded store under `kill -9` while generations are filled, published and dropped."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from rag.store.edge.store import EdgeStore
from rag.store.interface import Collection, ModelIdentity
from tests.support.paths import ROOT
from tests.support.rag.engines import CLIP, OTHER, make_points, quick_folder, run, script

POINTS = make_points(200)

# Round after round fills the other generation, publishes it, drops the old one and overwrites
# all payloads. After each it says so and waits for a line: a payload is [round, 0], and
# overwritten [round, 1].
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


# About what the step takes that begins when this was said, in seconds.
STEPS = {"filled": 0.001, "published": 0.006, "dropped": 0.005, "overwritten": 0.03}


def run_and_kill(folder: Path, round: int, within: str, after: float) -> tuple[str, int]:
    """Start a round, kill the process in the step that follows a word, return its last word."""
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
        said = process.stdout.read() or said  # the step may have ended
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
    """Hold what is stored against what was said last, and return the round that is published."""
    published = store.published("a")
    if published is None:
        assert (event, round) == ("filled", 0)
        return -1
    mine, others = identity_of(round), store.generations("a")[1:]
    if event == "filled" and published.identity != mine:  # killed before it was published
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


def test_one_generation_is_complete_and_published_whenever_it_is_killed(tmp_path: Path) -> None:
    rng = random.Random(0)
    with quick_folder(tmp_path) as folder:
        published = -1
        for within in [*STEPS] * 3:
            after = rng.uniform(0, STEPS[within])
            event, round = run_and_kill(folder, published + 1, within, after)
            with closing(EdgeStore(folder)) as store:
                published = check(store, event, round)
            left = {p.name for p in (folder / "a").glob(".[cd]*")}
            assert left == set()


# Dies just before one of the changes to folders that publishing and dropping make.
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


def test_killed_between_any_two_steps_of_publishing_and_dropping(tmp_path: Path) -> None:
    seen = set()
    with quick_folder(tmp_path) as folder:
        with closing(EdgeStore(folder / "before")) as store:
            store.open("a", CLIP).upsert(POINTS)
            store.open("a", OTHER, staged=True).upsert(POINTS[:100])
        for step in (1, 2, 3, 4, 5, 6, 15):
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
    assert seen == {(CLIP, 2), (OTHER, 2), (OTHER, 1)}
