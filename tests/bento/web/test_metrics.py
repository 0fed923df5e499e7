"""The metrics of several workers, and those of the model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.service


def worker(code: str, **environment: str) -> str:
    """Run code in a process of its own, with `metrics`, and return what it prints."""
    program = f"from bento.web.metrics import Metrics; metrics = Metrics(workers=2); {code}"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_workers_share_their_metrics_without_the_gauges_of_dead_ones(tmp_path: Path) -> None:
    shared = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    state = "metrics.tower('text').accepted({}); store = metrics.store('a'); store.points({})"
    call = "store.called('query', 0.01, answered={})"
    worker(f"{state.format(5, 1)}; {call.format(True)}", **shared)
    told = worker(
        f"{state.format(2, 7)}; {call.format(False)}; print(metrics.exposition().decode())",
        **shared,
    ).splitlines()
    assert 'vision_encoder_queue_length{tower="text"} 2.0' in told
    assert 'vision_encoder_store_seconds_count{operation="query"} 2.0' in told
    assert 'vision_encoder_store_points{collection="a"} 7.0' in told
    assert 'vision_encoder_store_up{collection="a"} 0.0' in told


def test_the_model_and_the_time_of_its_start_are_metrics() -> None:
    (seconds, info) = worker(
        "import time; time.sleep(0.5); "
        "metrics.loaded('a/b', 'd', {'text': 'float32', 'image': 'bfloat16'}, 'cpu'); "
        "print(*(line for line in metrics.exposition().decode().splitlines() "
        "if line.startswith(('vision_encoder_model', 'vision_encoder_cold'))), sep='\\n')"
    ).splitlines()[::-1]
    assert info == (
        'vision_encoder_model_info{device="cpu",digest="d",image_dtype="bfloat16",model="a/b",'
        'text_dtype="float32"} 1.0'
    )
    assert 0.5 < float(seconds.split()[1]) < 30
