"""The doctor's checks of the GPU, the memory and the container runtime."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bento.doctor.__main__ import examine
from bento.doctor.checks import available_ram
from bento.doctor.probe import Seen
from tests.support.bento.doctor import CPU, GPU, failed, machine

BLIND = replace(
    GPU,
    driver="535.1",
    driver_cuda="12.2",
    devices=(),
    devices_error="too old",
    free=0,
)

CPU_BUILD = replace(
    BLIND, torch="2.15.0+cpu", cuda="", architectures=(), count=0, devices_error="without CUDA"
)
HIDDEN = replace(BLIND, driver_cuda="13.2", count=0)
BARE = replace(CPU, module=True)  # a container without the NVIDIA runtime
VOLTA = replace(GPU, devices=["Tesla V100"], capabilities=["7.0"])

# GPU


def test_a_working_gpu_passes_all_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("auto", "cuda", "cuda:0"):
        monkeypatch.setenv("DEVICE", device)
        findings = examine(machine(GPU))
        assert not failed(findings)
        for name in ("GPU driver", "CUDA", "torch sees the GPU", "memory"):
            assert findings[name].status == "ok"
        assert "NVIDIA H200" in findings["GPU driver"].found
        assert "140.0 GB of GPU memory" in findings["memory"].found


def test_an_unused_gpu_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICE", "cpu")
    findings = examine(machine(GPU))
    assert not failed(findings)
    assert findings["torch sees the GPU"].status == "not_needed"
    assert "16.0 GB of memory" in findings["memory"].found


@pytest.mark.parametrize(
    ("seen", "device", "wanting"),
    [
        (CPU, "cuda", {"GPU driver", "torch sees the GPU", "memory"}),
        (BLIND, "cuda", {"CUDA", "torch sees the GPU", "memory"}),
        (BLIND, "auto", {"CUDA", "torch sees the GPU", "memory"}),
        (CPU_BUILD, "cuda", {"CUDA", "torch sees the GPU", "memory"}),
        (CPU_BUILD, "auto", set()),
        (HIDDEN, "cuda", {"GPU driver", "torch sees the GPU", "memory"}),
        (HIDDEN, "auto", set()),
        (BARE, "cuda", {"GPU driver", "torch sees the GPU", "memory"}),
        (BARE, "auto", set()),
        (VOLTA, "cuda", {"torch sees the GPU"}),
        (VOLTA, "auto", {"torch sees the GPU"}),
        (VOLTA, "cpu", set()),
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
        (replace(GPU, parameters=2_000_000_000), "cuda", {"memory"}),  # too little to load it
        (CPU, "auto", set()),
        (BLIND, "cpu", set()),
        (replace(GPU, product_error="CUDA error"), "cpu", set()),
    ],
)
def test_a_gpu_failure_fails_the_checks_only_if_the_gpu_is_needed(
    monkeypatch: pytest.MonkeyPatch, seen: Seen, device: str, wanting: set[str]
) -> None:
    monkeypatch.setenv("DEVICE", device)
    assert failed(examine(machine(seen))) == wanting


@pytest.mark.parametrize(
    ("seen", "check", "remedy"),
    [
        (BLIND, "CUDA", "make install CUDA=12 .* update the NVIDIA driver to 580 or newer"),
        (CPU_BUILD, "CUDA", "tag cuda12"),
        (HIDDEN, "GPU driver", "CUDA_VISIBLE_DEVICES"),
        (BARE, "GPU driver", "--gpus all, or docker-compose.gpu.yml"),
        (CPU, "GPU driver", "NVIDIA driver 535 or newer"),
        (VOLTA, "torch sees the GPU", "make install CUDA=12 "),
    ],
)
def test_each_failure_of_a_gpu_has_its_own_remedy(
    monkeypatch: pytest.MonkeyPatch, seen: Seen, check: str, remedy: str
) -> None:
    monkeypatch.setenv("DEVICE", "cuda")
    finding = examine(machine(seen))[check]
    assert re.search(remedy, finding.remedy)
    assert finding.remedy.endswith(", or set DEVICE=cpu")
    assert not re.search("pytorch.org|https?:", str(finding))


def test_a_working_driver_is_not_blamed_for_a_missing_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEVICE", "cuda")
    lost = "No module named 'torch'"
    seen = Seen(
        driver="535.1", gpus=["NVIDIA GeForce RTX 3090"], torch_error=lost, devices_error=lost
    )
    findings = examine(machine(seen))
    assert findings["GPU driver"].status == "ok"
    assert findings["CUDA"].remedy == "make install"


def test_a_missing_gpu_number_names_the_allowed_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICE", "cuda:1")
    finding = examine(machine(GPU))["torch sees the GPU"]
    assert finding.found.startswith("there is no cuda:1: ")
    assert finding.remedy == "set DEVICE=cuda:0, or set DEVICE=cpu"


# Memory


@pytest.mark.parametrize(
    ("workers", "ram", "ok"), [(1, 4.5, 1), (1, 4.3, 0), (2, 8.7, 0), (2, 8.9, 1)]
)
def test_each_worker_needs_memory_for_the_model_and_a_gigabyte(
    monkeypatch: pytest.MonkeyPatch, workers: int, ram: float, ok: int
) -> None:
    monkeypatch.setenv("WORKERS", str(workers))
    findings = examine(machine(ram=lambda: int(ram * 1e9)))
    assert failed(findings) == (set() if ok else {"memory"})
    assert f"{workers * 4.424:.1f} GB needed" in findings["memory"].found


def test_an_unknown_model_size_is_reported() -> None:
    finding = examine(machine(replace(CPU, parameters=0)))["memory"]
    assert finding.status == "not_needed"
    assert "is unknown; 16.0 GB" in finding.found


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
def test_the_memory_limit_of_a_container_counts(
    tmp_path: Path, limit: str, text: str, available: int
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert available_ram(tmp_path) == 8000 << 10
    path = tmp_path / "sys/fs/cgroup" / limit
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n")
    assert available_ram(tmp_path) == available


# Containers


@pytest.mark.parametrize(
    ("there", "status", "found"),
    [
        ({"docker"}, "ok", "docker 29.1"),
        ({"podman"}, "ok", "podman 29.1"),
        ({"docker", "nvidia-ctk"}, "ok", "docker 29.1 with nvidia-ctk"),
        (set(), "not_needed", "only make image and compose need it"),
    ],
)
def test_a_container_runtime_is_never_needed(there: set[str], status: str, found: str) -> None:
    which = {name: name for name in there}.get
    findings = examine(machine(GPU, which=which, run=lambda _: (0, "29.1\n", "")))
    assert findings["container runtime"].status == status
    assert found in findings["container runtime"].found
    assert not failed(findings)


def test_podman_is_checked_if_docker_does_not_answer() -> None:
    def answers(command: Any) -> tuple[int | None, str, str]:
        return (0, "5.6\n", "") if command[0] == "podman" else (1, "", "no daemon")

    both = {"docker": "docker", "podman": "podman"}
    assert "podman 5.6" in examine(machine(which=both.get, run=answers))["container runtime"].found
    finding = examine(machine(which={"docker": "docker"}.get, run=answers))["container runtime"]
    assert finding.status == "not_needed"
    assert "no daemon" in finding.found
