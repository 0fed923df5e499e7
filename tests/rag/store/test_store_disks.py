"""The embedded store on a disk that fills up, and on a read-only disk."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from bento.contract.errors import StoreFull, StoreUnavailable
from rag.store.edge.folders import MIN_FREE_BYTES
from rag.store.edge.store import EdgeStore
from tests.support.paths import ROOT
from tests.support.rag.engines import CLIP, make_points, script

pytestmark = pytest.mark.service

DISK_MB = 700
BATCH = 50

# Writes batches, and prints the number of each. When the store stops it, it prints the code of the
# error and ends.
WRITES = """
import time
from bento.contract.errors import StoreUnavailable
store = EdgeStore(Path(sys.argv[1]))
collection = store.open("a", CLIP)
first = int(sys.argv[2])
for batch in range(first, first + 10_000):
    try:
        collection.upsert(make_points(50, batch, note="x" * 2000))
    except StoreUnavailable as error:
        print("stopped:", error.code, flush=True)
        break
    print(batch, flush=True)
"""


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk in memory."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a disk needs CAP_SYS_ADMIN: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def write(disk: Path, first: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*script(WRITES), str(disk / "qdrant"), str(first)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fill(disk: Path, *, leave: int) -> Path:
    """Fill the disk until `leave` bytes are free."""
    filling = disk / "filling"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with filling.open("wb", buffering=0) as file, suppress(OSError):
        for _ in range(max(0, free - leave) >> 20):
            file.write(bytes(1 << 20))
    return filling


def assert_held(disk: Path, acknowledged: list[int]) -> None:
    """Check that the collection has all acknowledged batches."""
    with closing(EdgeStore(disk / "qdrant")) as store:
        collection = store.open("a", CLIP, create=False)
        for batch in acknowledged:
            points = make_points(BATCH, batch)
            assert collection.retrieve([p.id for p in points]).keys() == {p.id for p in points}
        assert collection.count() >= BATCH * len(acknowledged)
        assert collection.query(points[0].vector, 1)[0].id == points[0].id


def acknowledged(process: subprocess.Popen[str], said: list[str]) -> tuple[list[int], str]:
    """Return the batches that a writer acknowledged, and the line or error that it ended with."""
    rest, errors = process.communicate(timeout=60)
    lines = [*said, *rest.splitlines()]
    stopped = [line for line in lines if line.startswith("stopped:")]
    return [int(line) for line in lines if line.isdigit()], (stopped or [errors])[0]


@pytest.mark.parametrize("leave", [MIN_FREE_BYTES - (64 << 20), 0], ids=["nearly", "entirely"])
def test_a_disk_that_fills_up_loses_nothing_acknowledged(disk: Path, leave: int) -> None:
    with write(disk, 0) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(3)]
        filling = fill(disk, leave=leave)
        batches, why = acknowledged(process, said)
    assert len(batches) >= 3
    # On a disk without any free space, the kernel may kill the engine during a write.
    assert why == "stopped: store_full" or (leave, process.returncode) == (0, -signal.SIGBUS)
    with closing(EdgeStore(disk / "qdrant")) as store, pytest.raises(StoreFull):
        store.open("a", CLIP)
    filling.unlink()
    assert_held(disk, batches)
    with write(disk, 100_000) as process:  # writes work again
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "100000"
        process.kill()


def test_a_read_only_disk_is_reported_and_loses_nothing(
    disk: Path,
) -> None:
    with write(disk, 0) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(5)]
        process.kill()
        batches, _ = acknowledged(process, said)
    mount("-o", "remount,ro", str(disk))
    try:
        with pytest.raises(StoreUnavailable, match=r"QDRANT_PATH.*Read-only file system"):
            EdgeStore(disk / "qdrant")
    finally:
        mount("-o", "remount,rw", str(disk))
    assert_held(disk, batches)
