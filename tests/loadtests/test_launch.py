"""How a load test starts a service: with its own settings, and leaving no process running."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from loadtests.launch import checkout_in, model, running

pytestmark = pytest.mark.service

# Serves, and starts a worker in a session of its own, as BentoML does.
SUPERVISOR = """
import http.server, os, subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
subprocess.Popen(sleep, start_new_session=True)
open("seen", "w").write(os.environ["SETTING"])
address = "127.0.0.1", int(sys.argv[2])
http.server.HTTPServer(address, http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.mark.service
@pytest.mark.parametrize("sent", [None, signal.SIGKILL])
def test_no_worker_survives_even_if_its_supervisor_was_killed(
    tmp_path: Path, sent: signal.Signals | None
) -> None:
    command = ["-c", SUPERVISOR]
    with running("it", command, "/", tmp_path, tmp_path, {"SETTING": "x"}) as (_, process):
        (worker,) = process.children()
        if sent:
            os.kill(process.pid, sent)
    worker.wait(10)
    assert not worker.is_running()
    assert not process.is_running()
    assert (tmp_path / "seen").read_text() == "x"


def test_the_service_does_not_read_the_checkouts_dotenv(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bento").mkdir(parents=True)
    for name in (".env", "service.py"):
        (root / name).write_text("API_KEY=another")
    linked = {each.name for each in checkout_in(tmp_path, root).iterdir()}
    assert linked == {"bento", "service.py"}


def test_the_names_of_the_model_may_have_the_prefix_vision(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL_NAME", "MODEL_PRETRAINED"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(f"VISION_{name}", "prefixed")
    assert model() == {"MODEL_NAME": "prefixed", "MODEL_PRETRAINED": "prefixed"}
    monkeypatch.setenv("MODEL_NAME", "plain")
    monkeypatch.setenv("MODEL_PRETRAINED", "plain")
    assert model() == {"MODEL_NAME": "plain", "MODEL_PRETRAINED": "plain"}
