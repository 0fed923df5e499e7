"""What a load test starts for itself: with settings of its own, and nothing is left running."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import loadtests.__main__ as started

# Serves, and starts a worker in a session of its own, as BentoML does.
SUPERVISOR = """
import http.server, os, subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
subprocess.Popen(sleep, start_new_session=True)
open("seen", "w").write(os.environ["SETTING"])
address = "127.0.0.1", int(sys.argv[2])
http.server.HTTPServer(address, http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.mark.parametrize("sent", [None, signal.SIGKILL])
def test_no_worker_is_left_even_when_its_supervisor_was_killed(
    tmp_path: Path, sent: signal.Signals | None
) -> None:
    command = ["-c", SUPERVISOR]
    with started._running("it", command, "/", tmp_path, tmp_path, {"SETTING": "x"}) as (_, process):
        (worker,) = process.children()
        if sent:
            os.kill(process.pid, sent)
    worker.wait(10)
    assert not worker.is_running() and not process.is_running()
    assert (tmp_path / "seen").read_text() == "x"


def test_what_is_started_does_not_read_the_checkout_s_dotenv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    (root / "bento").mkdir(parents=True)
    for name in (".env", "service.py"):
        (root / name).write_text("API_KEY=another")
    monkeypatch.setattr(started, "_ROOT", root)
    assert {each.name for each in started._checkout(tmp_path).iterdir()} == {"bento", "service.py"}


def test_the_model_is_named_as_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL_NAME", "MODEL_PRETRAINED"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(f"VISION_{name}", "prefixed")
    assert started._model() == {"MODEL_NAME": "prefixed", "MODEL_PRETRAINED": "prefixed"}
    monkeypatch.setenv("MODEL_NAME", "plain")
    monkeypatch.setenv("MODEL_PRETRAINED", "plain")
    assert started._model() == {"MODEL_NAME": "plain", "MODEL_PRETRAINED": "plain"}
