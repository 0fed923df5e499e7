"""The embedded store and processes: its lock, forks, and `kill -9`."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path

import pytest

from bento.contract.errors import StoreLocked
from bento.contract.filters import tenant
from rag.store.edge.store import EdgeStore
from tests.support.rag.engines import CLIP, OTHER, make_points, run

pytestmark = pytest.mark.service


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_second_process_is_rejected_without_harm_to_the_first(folder: Path) -> None:
    points = make_points(30)
    with closing(EdgeStore(folder)) as store:
        collection = store.open("a", CLIP)
        collection.upsert(points[:10])

        second = run("EdgeStore(Path(sys.argv[1]))", folder)
        assert "StoreLocked" in second.stderr
        assert f"pid {os.getpid()}" in second.stderr
        assert str(folder) in second.stderr
        assert "QDRANT_HOST" in second.stderr
        with pytest.raises(StoreLocked, match="this process"):
            EdgeStore(folder)

        collection.upsert(points[10:])
        assert collection.query(points[20].vector, 1)[0].id == points[20].id
    with closing(EdgeStore(folder)) as store:
        assert store.open("a", CLIP).count() == 30
    assert (folder / ".lock").read_text() == ""


def test_acknowledged_writes_survive_a_killed_process(folder: Path) -> None:
    code = """
collection = EdgeStore(Path(sys.argv[1])).open("a", CLIP)
points = make_points(200, dao_id="ours")
collection.upsert(points)
assert collection.delete([p.id for p in points[:50]]) == 50
collection.upsert([replace(points[60], payload={"title": "new"})])
assert collection.overwrite_payloads({points[61].id: {"title": "newer"}}) == 1
os.kill(os.getpid(), signal.SIGKILL)
"""
    for _ in range(2):  # the second run starts with the files of the first
        killed = run(code, folder)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    points = make_points(200, dao_id="ours")
    with closing(EdgeStore(folder)) as store:
        collection = store.open("a", CLIP)
        assert collection.count(filter=tenant("ours")) == 148
        found = collection.retrieve([p.id for p in points])
        assert found.pop(points[60].id).payload == {"title": "new"}
        assert found.pop(points[61].id).payload == {"title": "newer"}
        kept = [*points[50:60], *points[62:]]
        assert {id: r.payload for id, r in found.items()} == {p.id: p.payload for p in kept}
        for point in (points[61], points[100]):
            assert collection.query(point.vector, 1)[0].id == point.id


def killed_at(rename: int, path: Path) -> None:
    """Open a collection in a process that is killed just before the given rename."""
    code = f"""
left = {rename}
def kill(event, args):
    global left
    if event == "os.rename":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
EdgeStore(Path(sys.argv[1])).open("a", CLIP)
"""
    killed = run(code, path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def test_a_crash_while_creating_leaves_no_version(folder: Path) -> None:
    killed_at(1, folder)
    assert names(folder / "a") == {f".creating-{CLIP.generation}"}
    with closing(EdgeStore(folder)) as store:
        assert names(folder / "a") == set()
        assert store.published("a") is None
        assert store.generations("a") == []
        store.open("a", OTHER).upsert(make_points(1))
    assert names(folder / "a") == {OTHER.generation, "published"}


def test_opening_completes_a_creation_that_was_not_published(folder: Path) -> None:
    killed_at(2, folder)
    assert names(folder / "a") == {CLIP.generation, ".publishing"}
    with closing(EdgeStore(folder)) as store:
        assert store.published("a") is None
        assert store.open("a", CLIP).count() == 0
        assert store.published("a") is not None


def test_a_fork_is_rejected_without_harm_to_its_parent(folder: Path) -> None:
    code = """
store = EdgeStore(Path(sys.argv[1]))
collection = store.open("a", CLIP)
collection.upsert(make_points(3))
child = os.fork()
if child == 0:
    refused = 0
    for call in (collection.count, lambda: store.published("a"), lambda: store.open("a", CLIP)):
        try:
            call()
        except StoreLocked:
            refused += 1
    store.close()
    os._exit(refused)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
try:
    EdgeStore(Path(sys.argv[1]))
except StoreLocked:
    print("still locked", collection.count())
store.close()
"""
    result = run(code, folder)
    assert result.stdout == "still locked 3\n", result.stderr
