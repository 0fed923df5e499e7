"""The doctor says what this machine lacks, what to do about it, and neither raises nor hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from bento.doctor import __main__ as doctor
from bento.doctor.__main__ import examine
from bento.doctor.probe import look, run
from tests.support.bento.doctor import CPU, failed, machine
from tests.support.paths import BUNDLED, ROOT

HAS_GPU = torch.cuda.is_available()


def as_process(**environment: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "bento.doctor", "--json"],
        cwd=ROOT,
        env={**os.environ, "MODEL_NAME": BUNDLED, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, json.loads(done.stdout)


# This machine


def test_the_bundled_model_can_be_served_here() -> None:
    status, said = as_process(DEVICE="cpu")
    findings = {check["name"]: check for check in said["checks"]}
    assert (status, said["ok"]) == (0, True), said
    assert list(findings) == [
        "python",
        "GPU driver",
        "CUDA",
        "torch sees the GPU",
        "memory",
        "container runtime",
        "weights",
        "Qdrant",
        "port",
    ]
    assert {c["status"] for c in said["checks"]} <= {"ok", "not_needed"}
    assert {findings[name]["status"] for name in ("python", "memory", "weights", "port")} == {"ok"}
    for name in ("GPU driver", "CUDA", "torch sees the GPU"):
        assert findings[name]["status"] == "not_needed"
        assert "DEVICE=cpu takes the CPU" in findings[name]["found"]
    assert "M parameters)" in findings["memory"]["found"]
    assert findings["weights"]["found"].endswith("models/shapes/open_clip_model.safetensors")


@pytest.mark.skipif(HAS_GPU, reason="for machines without a GPU")
def test_a_gpu_that_is_wanted_and_not_there_fails_with_remedies() -> None:
    status, said = as_process(DEVICE="cuda:1")
    wanting = {check["name"]: check for check in said["checks"] if check["status"] == "failed"}
    assert (status, said["ok"]) == (1, False)
    assert set(wanting) == {"GPU driver", "CUDA", "torch sees the GPU", "memory"}
    assert wanting["GPU driver"]["found"].startswith("no NVIDIA driver: ")
    assert "--gpus all" in wanting["GPU driver"]["remedy"]
    assert ", 0.0 GB of GPU memory available" in wanting["memory"]["found"]
    assert all(check["remedy"] for check in wanting.values())


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_the_gpu_of_this_machine_computes() -> None:
    status, said = as_process(DEVICE="cuda:0")
    found = {check["name"]: check["found"] for check in said["checks"]}
    assert (status, said["ok"]) == (0, True), said
    assert "cuda:0 computes" in found["torch sees the GPU"]
    assert "GPU memory" in found["memory"]


def test_a_device_that_does_not_exist_is_named_and_the_rest_is_still_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEVICE", "gpu")
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    findings = examine(machine())
    assert failed(findings) == {"settings"}
    assert findings["settings"].found.startswith("DEVICE=gpu: ")
    assert "cuda" in findings["settings"].found
    assert {"python", "GPU driver", "CUDA", "container runtime", "Qdrant"} <= set(findings)
    assert not {"memory", "weights", "port"} & set(findings)


def test_settings_that_contradict_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_IMAGE_BYTES", "60000000")
    monkeypatch.setenv("QDRANT_PORT", "0")
    found = examine(machine())["settings"].found
    assert found.startswith("MAX_IMAGE_BYTES=60000000")
    assert "QDRANT_PORT=0" in found


def test_a_key_that_is_none_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "s3cret key")
    found = examine(machine())["settings"].found
    assert found.startswith("API_KEY: ")
    assert "s3cret" not in found


def test_an_old_python_fails() -> None:
    findings = examine(machine(python=(3, 10, 14)))
    assert failed(findings) == {"python"}
    assert findings["python"].found == "3.10.14"


# Output


def test_the_table_has_a_mark_for_each_check_and_a_remedy_for_each_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("MODEL_NAME", "local-dir:[red]not markup[/red]")
    assert doctor.main([], machine(replace(CPU, model_error="there is none"))) == 1
    said = capsys.readouterr().out
    lines = said.splitlines()
    marks = {line.split("  ")[1].strip(): line.split()[0] for line in lines[1:-1]}
    assert (marks["python"], marks["weights"], marks["Qdrant"]) == ("✓", "✗", "–")
    assert "local-dir:[red]not markup[/red]" in said
    assert "needs a folder with open_clip_config.json" in said
    assert doctor.main([], machine()) == 0
    assert "can run the service" in capsys.readouterr().out


def test_a_terminal_that_has_no_check_mark_gets_another_character() -> None:
    code = "from bento.doctor.__main__ import *; main([], Machine(look=lambda *_: Seen()))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True)
    assert done.returncode == 0


def test_help_says_what_the_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        doctor.main(["--help"])
    assert end.value.code == 0
    assert "Exit status" in capsys.readouterr().out


# Nothing raises, nothing hangs


def broken(*_: object) -> Any:
    raise RuntimeError("it broke")


@pytest.mark.parametrize("part", ["look", "ram", "which"])
def test_a_probe_that_raises_is_a_finding(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    parts: dict[str, Any] = {part: broken}
    assert doctor.main(["--json"], machine(**parts)) == 1
    said = json.loads(capsys.readouterr().out)
    assert any("it broke" in c["found"] and c["remedy"] for c in said["checks"])


def test_a_check_that_hangs_is_left() -> None:
    over = threading.Event()
    findings = examine(machine(ram=lambda: int(over.wait(60)), seconds=0.2))
    over.set()
    assert failed(findings) == {"memory"}
    assert "no answer within" in findings["memory"].found


def test_a_command_that_hangs_is_ended_and_what_it_said_is_kept() -> None:
    code = "import time; print('said', flush=True); time.sleep(60)"
    began = time.monotonic()
    assert run([sys.executable, "-c", code], seconds=1) == (None, "said\n", "no answer within 1 s")
    assert time.monotonic() - began < 10


def test_a_look_that_hangs_leaves_what_came_before() -> None:
    begun = '{"torch": "2.15.0", "cuda": "13.2", "torch_error": ""}\nnoise\n'
    seen = look(
        "ViT-L-14", "openai", "cpu", run=lambda *_, **__: (None, begun, "no answer within 60 s")
    )
    assert (seen.torch, seen.torch_error) == ("2.15.0", "")
    assert seen.driver_error == seen.model_error == "no answer within 60 s"
    assert failed(examine(machine(seen))) == {"weights"}


def test_torch_that_cannot_be_imported_fails_whatever_the_device() -> None:
    seen = replace(CPU, torch_error="No module named 'torch'")
    assert failed(examine(machine(seen))) == {"CUDA", "weights"}
