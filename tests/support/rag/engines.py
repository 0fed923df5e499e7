"""Identities, points, settings and subprocesses for the tests of the stores."""

from __future__ import annotations

import inspect
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from rag.settings import RagSettings
from rag.store.interface import ModelIdentity, Point
from tests.support.paths import ROOT

DIM = 16
CLIP = ModelIdentity("ViT-B-32", "openai", "sha256:aaaa", "resize224", DIM)
OTHER = ModelIdentity("ViT-L-14", "laion2b", "sha256:bbbb", "resize336", DIM)


def point_id(key: object) -> str:
    return str(uuid5(NAMESPACE_URL, str(key)))


def make_points(count: int, seed: int = 0, **payload: Any) -> list[Point]:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return [Point(point_id(f"{seed}/{n}"), vectors[n], {"n": n, **payload}) for n in range(count)]


def cosines(points: list[Point], vector: Any) -> Any:
    rows = np.stack([p.vector for p in points]).astype(np.float64)
    return rows @ vector / np.linalg.norm(rows, axis=1) / np.linalg.norm(vector)


def settings(**values: Any) -> RagSettings:
    return RagSettings(_env_file=None, **values)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def quick_folder(otherwise: Path) -> Iterator[Path]:
    """Yield a folder in memory, where syncing is fast, or `otherwise` if memory is short."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 1 << 30:
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def script(code: str) -> list[str]:
    """Return the command that runs code in a subprocess, with the names of this module."""
    prelude = "\n".join(
        (
            "from __future__ import annotations",
            "import os, signal, sys",
            "from dataclasses import replace",
            "from pathlib import Path",
            "from typing import Any",
            "from uuid import NAMESPACE_URL, uuid5",
            "import numpy as np",
            "from rag.store.edge.store import EdgeStore",
            "from bento.contract.errors import StoreLocked",
            "from rag.store.interface import ModelIdentity, Point",
            f"DIM, CLIP, OTHER = {DIM}, {CLIP!r}, {OTHER!r}",
            inspect.getsource(point_id),
            inspect.getsource(make_points),
        )
    )
    return [sys.executable, "-W", "error", "-c", prelude + code]


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run code in a subprocess."""
    return subprocess.run(
        [*script(code), *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
