"""The demo, as `make demo ONCE=1` runs it: right pictures first, nothing indexed twice."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
from PIL import Image

from tests.support.paths import BUNDLED, ROOT
from tests.support.serving import free_port


def run_demo(folder: Path, port: int) -> str:
    environment = {
        **os.environ,
        "MODEL_NAME": BUNDLED,
        "DEVICE": "cpu",
        "QDRANT_ENABLED": "true",
        "PORT": str(port),
        "PYTHONPATH": str(ROOT),
        "QDRANT_PATH": str(folder / "qdrant"),
        "BENTOML_DO_NOT_TRACK": "True",
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "models.shapes", "demo", "--once"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_demo_finds_the_right_pictures_and_indexes_nothing_twice(tmp_path: Path) -> None:
    port = free_port()
    first = run_demo(tmp_path, port)
    assert "indexed 300, updated 0, unchanged 0" in first
    for best in (
        "large red circle on yellow background",
        "four small blue squares on black background",
        "small red cross on green background",
        "three large pink hearts on white background",
    ):
        assert best in first
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.width > 900 and sheet.height > 700
    second = run_demo(tmp_path, port)
    assert "indexed 0, updated 0, unchanged 300" in second
    assert not processes_of(port)


def processes_of(port: int) -> list[psutil.Process]:
    """Return what still runs with this PORT, whoever its parent is by now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PORT") == str(port):
                found.append(process)
    return found
