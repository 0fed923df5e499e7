"""The doctor's checks of the GPU, the memory and the container runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bento.doctor.__main__ import examine
from bento.doctor.checks import available_ram
from bento.doctor.probe import Seen, look
from tests.support.bento.doctor import CPU, GPU, failed, machine
from tests.support.paths import ROOT

BLIND = replace(
    GPU,
    driver="535.1",
    driver_cuda="12.2",
    available=False,
    devices=(),
    devices_error="too old",
    free=0,
)


# GPU


def test_a_gpu_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("auto", "cuda", "cuda:0"):
        monkeypatch.setenv("DEVICE", device)
        findings = examine(machine(GPU))
        assert not failed(findings)
        for name in ("GPU driver", "CUDA", "torch sees the GPU", "memory"):
            assert findings[name].status == "ok"
        assert "NVIDIA H200" in findings["GPU driver"].found
        assert "140.0 GB of GPU memory" in findings["memory"].found


def test_a_gpu_that_is_not_wanted_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICE", "cpu")
    findings = examine(machine(GPU))
    assert not failed(findings)
    assert findings["torch sees the GPU"].status == "not_needed"
    assert "16.0 GB of memory" in findings["memory"].found


@pytest.mark.parametrize(
    ("seen", "device", "wanting"),
    [
        (CPU, "cuda", {"GPU driver", "CUDA", "torch sees the GPU", "memory"}),
        (BLIND, "cuda", {"CUDA", "torch sees the GPU", "memory"}),
        (
            replace(BLIND, cuda="", devices_error="Torch not compiled with CUDA enabled"),
            "cuda",
            {"CUDA", "torch sees the GPU", "memory"},
        ),
        (replace(BLIND, gpus=()), "cuda", {"GPU driver", "CUDA", "torch sees the GPU", "memory"}),
        (replace(GPU, free=0), "cuda:1", {"torch sees the GPU", "memory"}),
        (
            replace(GPU, product_error="CUDA error", free=0),
            "cuda",
            {"torch sees the GPU", "memory"},
        ),
        (
            replace(GPU, product_error="CUDA error", free=0),
            "auto",
            {"torch sees the GPU", "memory"},
        ),
        (replace(GPU, devices=(), free=0), "auto", {"torch sees the GPU", "memory"}),
        (replace(GPU, free=2_000_000_000), "cuda", {"memory"}),
        (replace(GPU, free=2_000_000_000), "auto", {"memory"}),
        (replace(GPU, parameters=2_000_000_000), "cuda", {"memory"}),  # of the machine, to load it
        (CPU, "auto", set()),
        (BLIND, "auto", set()),
        (BLIND, "cpu", set()),
        (replace(GPU, product_error="CUDA error"), "cpu", set()),
    ],
)
def test_each_failure_of_a_gpu_is_found_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, seen: Seen, device: str, wanting: set[str]
) -> None:
    monkeypatch.setenv("DEVICE", device)
    assert failed(examine(machine(seen))) == wanting


def test_a_driver_too_old_for_torch_is_told_from_gpus_that_are_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEVICE", "cuda")
    old = examine(machine(BLIND))["CUDA"]
    assert "13.2" in old.found and "too old" in old.found
    assert "torch built for CUDA 12.2" in old.remedy
    hidden = examine(machine(replace(BLIND, driver_cuda="13.2")))["CUDA"]
    assert "CUDA_VISIBLE_DEVICES" in hidden.remedy


def test_a_gpu_beyond_those_there_names_those_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICE", "cuda:1")
    finding = examine(machine(GPU))["torch sees the GPU"]
    assert "DEVICE=cuda:1" in finding.found
    assert finding.remedy.endswith("auto, cpu, cuda:0")


# Memory


@pytest.mark.parametrize(
    ("workers", "ram", "ok"), [(1, 4.5, 1), (1, 4.3, 0), (2, 8.7, 0), (2, 8.9, 1)]
)
def test_each_worker_needs_the_model_and_a_gigabyte(
    monkeypatch: pytest.MonkeyPatch, workers: int, ram: float, ok: int
) -> None:
    monkeypatch.setenv("WORKERS", str(workers))
    findings = examine(machine(ram=lambda: int(ram * 1e9)))
    assert failed(findings) == (set() if ok else {"memory"})
    assert f"{workers * 4.424:.1f} GB needed" in findings["memory"].found


def test_a_size_that_is_not_known_is_said() -> None:
    finding = examine(machine(replace(CPU, parameters=0)))["memory"]
    assert finding.status == "not_needed"
    assert "not known" in finding.found and "16.0 GB" in finding.found


@pytest.mark.parametrize(
    ("limit", "text", "available"),
    [
        ("memory.max", "max", 8000 << 10),
        ("memory.max", "4096000", 4_096_000),
        ("memory.max", "99999999999", 8000 << 10),
        ("memory/memory.limit_in_bytes", "4096000", 4_096_000),
        ("memory/memory.limit_in_bytes", "9223372036854771712", 8000 << 10),
    ],
)
def test_the_limit_of_a_container_counts(
    tmp_path: Path, limit: str, text: str, available: int
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert available_ram(tmp_path) == 8000 << 10
    path = tmp_path / "sys/fs/cgroup" / limit
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n")
    assert available_ram(tmp_path) == available


def test_a_model_far_too_large_is_counted_and_not_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = json.loads((ROOT / "models/shapes/open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = 10**11
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setenv("MODEL_NAME", f"local-dir:{tmp_path}")
    findings = examine(machine(look=look))
    assert failed(findings) == {"memory"}


# Containers


@pytest.mark.parametrize(
    ("there", "status", "found"),
    [
        ({"docker"}, "ok", "docker 29.1"),
        ({"podman"}, "ok", "podman 29.1"),
        ({"docker", "nvidia-ctk"}, "ok", "nvidia-ctk found"),
        (set(), "not_needed", "only make image and compose need one"),
    ],
)
def test_a_container_runtime_is_found_and_never_needed(
    there: set[str], status: str, found: str
) -> None:
    which = {name: name for name in there}.get
    findings = examine(machine(GPU, which=which, run=lambda _: (0, "29.1\n", "")))
    assert findings["container runtime"].status == status
    assert found in findings["container runtime"].found
    assert not failed(findings)


def test_a_runtime_that_does_not_answer_makes_room_for_the_other() -> None:
    def answers(command: Any) -> tuple[int | None, str, str]:
        return (0, "5.6\n", "") if command[0] == "podman" else (1, "", "no daemon")

    both = {"docker": "docker", "podman": "podman"}
    assert "podman 5.6" in examine(machine(which=both.get, run=answers))["container runtime"].found
    finding = examine(machine(which={"docker": "docker"}.get, run=answers))["container runtime"]
    assert finding.status == "not_needed" and "no daemon" in finding.found
