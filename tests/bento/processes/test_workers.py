"""The supervisor ends on SIGTERM at any moment, and its workers end with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from bento.processes.workers import _quit
from tests.support.paths import BUNDLED, ROOT
from tests.support.serving import free_port, serving

ENDS_WITHIN = 30.0  # seconds


class Loop:
    """A loop that runs its callbacks when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[..., Any]] = []

    def add_callback_from_signal(self, call: Callable[..., Any]) -> None:
        self.calls.append(call)

    def call_later(self, _: float, call: Callable[..., Any]) -> None:
        self.calls.append(call)

    def run(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


def test_a_signal_during_another_command_is_not_lost() -> None:
    sent: list[str] = []
    arbiter = SimpleNamespace(_exclusive_running_command="arbiter_start_watchers")
    controller = SimpleNamespace(
        loop=Loop(),
        arbiter=arbiter,
        dispatch=lambda job: sent.append(json.loads(job[1])["command"]),
    )
    _quit(SimpleNamespace(controller=controller))
    for _ in range(3):
        controller.loop.run()
    assert sent == []
    arbiter._exclusive_running_command = None
    controller.loop.run()
    assert sent == ["quit"]
    assert controller.loop.calls == []


@pytest.mark.service
@pytest.mark.parametrize("seconds", [0.7, 1.1, 1.5, 1.9, 2.5, 3.5])
def test_sigterm_ends_the_service_at_any_moment_of_its_start(
    tmp_path: Path, seconds: float
) -> None:
    environment = {"MODEL_NAME": BUNDLED, "PORT": str(free_port()), "QDRANT_ENABLED": "false"}
    command = [sys.executable, "-m", "bentoml", "serve", "service:VisionEncoder"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=log
        )
    try:
        time.sleep(seconds)
        process.terminate()
        process.wait(ENDS_WITHIN)
    finally:
        process.kill()  # its workers then end, too
    assert process.returncode in (0, -signal.SIGTERM)


@pytest.mark.service
def test_a_worker_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, QDRANT_ENABLED="false") as server:
        supervisor = psutil.Process(server.pid)
        workers = supervisor.children()
        supervisor.kill()
        gone, alive = psutil.wait_procs(workers, ENDS_WITHIN)
        assert (len(gone), alive) == (1, [])
    assert "the supervisor has ended" in server.log.read_text()
