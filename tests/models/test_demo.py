"""The demo, as `make demo ONCE=1` runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from PIL import Image

from tests.support.paths import BUNDLED, ROOT
from tests.support.serving import free_port

pytestmark = pytest.mark.service


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


def test_the_demo_finds_the_right_pictures(tmp_path: Path) -> None:
    port = free_port()
    output = run_demo(tmp_path, port)
    assert "indexed 300, updated 0, unchanged 0" in output
    for best in (
        "large red circle on yellow background",
        "four small blue squares on black background",
        "small red cross on green background",
        "three large pink hearts on white background",
    ):
        assert best in output
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.width > 900
        assert sheet.height > 700
    assert not processes_of(port)


@pytest.mark.slow
def test_a_second_demo_indexes_nothing_again(tmp_path: Path) -> None:
    port = free_port()
    run_demo(tmp_path, port)
    assert "indexed 0, updated 0, unchanged 300" in run_demo(tmp_path, port)


def processes_of(port: int) -> list[psutil.Process]:
    """Return the processes with this PORT in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PORT") == str(port):
                found.append(process)
    return found
