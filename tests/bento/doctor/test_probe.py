"""The doctor examines this machine, in subprocesses and with torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bento.contract.errors import ModelLoadError
from bento.doctor.__main__ import examine
from bento.doctor.probe import find_weights, look, run
from tests.support.bento.doctor import Loopback, failed, machine
from tests.support.paths import BUNDLED, ROOT

pytestmark = pytest.mark.service

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
        assert "DEVICE=cpu uses the CPU" in findings[name]["found"]
    assert "M parameters each)" in findings["memory"]["found"]
    assert findings["weights"]["found"].endswith("models/shapes/open_clip_model.safetensors")


@pytest.mark.skipif(HAS_GPU, reason="needs a machine without a GPU")
def test_a_missing_gpu_fails_with_remedies() -> None:
    status, said = as_process(DEVICE="cuda:1")
    broken = {check["name"]: check for check in said["checks"] if check["status"] == "failed"}
    assert (status, said["ok"]) == (1, False)
    assert set(broken) == {"GPU driver", "torch sees the GPU", "memory"}
    assert broken["GPU driver"]["found"].startswith("there is no NVIDIA driver: ")
    assert "NVIDIA driver 535" in broken["GPU driver"]["remedy"]
    assert ", 0.0 GB of GPU memory available" in broken["memory"]["found"]
    assert all(check["remedy"] for check in broken.values())


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_the_gpu_of_this_machine_passes() -> None:
    status, said = as_process(DEVICE="cuda:0")
    found = {check["name"]: check["found"] for check in said["checks"]}
    assert (status, said["ok"]) == (0, True), said
    assert "cuda:0 can compute" in found["torch sees the GPU"]
    assert "GPU memory" in found["memory"]


def test_a_terminal_without_the_check_mark_gets_another_character() -> None:
    code = "from bento.doctor.__main__ import *; main([], Machine(look=lambda *_: Seen()))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True)
    assert done.returncode == 0


def test_a_command_that_hangs_is_killed_and_its_output_is_kept() -> None:
    code = "import time; print('said', flush=True); time.sleep(60)"
    began = time.monotonic()
    assert run([sys.executable, "-c", code], seconds=1) == (None, "said\n", "no answer within 1 s")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("name", "pretrained", "said"),
    [
        ("local-dir:nowhere", "openai", "there is no nowhere/open_clip_config.json"),
        ("local-dir:", "openai", "there is no open_clip_config.json"),
        ("local-dir:empty", "openai", "empty has no weights"),
        ("ViT-B-32", "weights/mine.pt", "there is no checkpoint file weights/mine.pt"),
        ("vit-b32", "openai", "OpenCLIP has no model vit-b32; available names include ViT-B-32"),
        (
            "ViT-B-32",
            "openia",
            "OpenCLIP has no weights openia for ViT-B-32; available names include openai",
        ),
    ],
)
def test_an_unknown_model_is_named_with_available_ones(
    tmp_path: Path, name: str, pretrained: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(ModelLoadError) as error:
        find_weights(name, pretrained)
    assert str(error.value).startswith(said)


def test_an_existing_checkpoint_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(b"weights")
    assert find_weights("ViT-B-32", "mine.pt") == "mine.pt"


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "hf-hub:org/model"])
def test_the_probe_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    loopback: Callable[..., Loopback],
    name: str,
) -> None:
    hub = loopback(**{"": "hub"})
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    seen = look(name, "webli", "cpu")
    assert "weights, tokenizer" in seen.lacking
    assert seen.source == hub.url
    assert not hub.asked


def test_the_probe_names_no_source_if_the_hub_is_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    seen = look("ViT-L-14", "openai", "cpu")
    assert (seen.lacking, seen.source, seen.model_error) == ("weights", "", "")


def test_a_huge_model_is_sized_without_being_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = json.loads((ROOT / "models/shapes/open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = 10**11
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setenv("MODEL_NAME", f"local-dir:{tmp_path}")
    findings = examine(machine(look=look))
    assert failed(findings) == {"memory"}
