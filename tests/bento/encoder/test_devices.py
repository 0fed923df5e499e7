"""The GPU that DEVICE means, the number of CPUs, and the priority of threads."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from bento.contract.errors import ModelLoadError
from bento.encoder.cpus import available_cpus, give_way
from bento.encoder.devices import Gpus, choose_device

TWO: Final = Gpus(
    torch="2.15.0",
    cuda="13.2",
    architectures=["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
    driver_cuda="13.0",
    module=True,
    count=2,
    devices=["NVIDIA GeForce RTX 3090", "NVIDIA H200"],
    capabilities=["8.6", "9.0"],
)
NONE: Final = replace(
    TWO, driver_cuda="", module=False, count=0, devices=(), devices_error="no NVIDIA driver"
)
CUDA12: Final = replace(
    TWO, torch="2.10.0", cuda="12.8", architectures=["sm_70", *TWO.architectures]
)
TOO_OLD: Final = replace(TWO, driver_cuda="12.2", devices=(), devices_error="too old")
BARE: Final = replace(NONE, module=True)  # a container without the NVIDIA runtime
CPU_BUILD: Final = replace(NONE, cuda="", architectures=())


def card(gpus: Gpus, capability: str) -> Gpus:
    return replace(gpus, count=1, devices=["a card"], capabilities=[capability])


@pytest.mark.parametrize(
    ("gpus", "wanted", "device"),
    [
        (TWO, "auto", "cuda"),  # the first GPU
        (TWO, "cuda", "cuda"),
        (TWO, "cuda:1", "cuda:1"),
        (TWO, "cpu", "cpu"),
        (replace(CUDA12, driver_cuda="12.2"), "auto", "cuda"),
        (NONE, "auto", "cpu"),
        (BARE, "auto", "cpu"),
        (CPU_BUILD, "auto", "cpu"),
        (replace(CPU_BUILD, driver_cuda="12.2", module=True), "auto", "cpu"),
        (replace(TOO_OLD, count=0), "auto", "cpu"),  # CUDA_VISIBLE_DEVICES hides the GPUs
        (TOO_OLD, "cpu", "cpu"),
        (card(TWO, "7.5"), "auto", "cuda"),
        (card(TWO, "8.9"), "auto", "cuda"),  # runs the code for 8.6
        (card(TWO, "10.3"), "auto", "cuda"),
        (card(CUDA12, "7.0"), "auto", "cuda"),
        (replace(card(TWO, "9.0"), cuda="", architectures=()), "auto", "cuda"),  # not NVIDIA's
    ],
)
def test_auto_takes_the_first_gpu_and_without_one_the_cpu(
    gpus: Gpus, wanted: str, device: str
) -> None:
    assert choose_device(wanted, gpus) == device


@pytest.mark.parametrize(
    ("gpus", "devices", "remedy"),
    [
        (NONE, "cuda cuda:1", "install NVIDIA driver 535 or newer, and restart the machine"),
        (CPU_BUILD, "cuda cuda:0", "make image without CPU=1)"),
        (
            replace(CPU_BUILD, driver_cuda="12.2", module=True),
            "cuda",
            "run make install (for an image: take the tag cuda12, or make image without CPU=1)",
        ),
        (
            TOO_OLD,
            "auto cuda cuda:1",
            "run make install CUDA=12 (for an image: take the tag cuda12), or update the NVIDIA "
            "driver to 580 or newer",
        ),
        (replace(TOO_OLD, driver_cuda="11.4"), "auto cuda", "the NVIDIA driver to 580 or newer"),
        (
            replace(CUDA12, driver_cuda="11.4", devices=()),
            "auto cuda",
            "update the NVIDIA driver to 535 or newer",
        ),
        (BARE, "cuda cuda:1", "compute in NVIDIA_DRIVER_CAPABILITIES if that is set"),
        (replace(TOO_OLD, count=0, driver_cuda="13.2"), "cuda", "does not hide it"),
        (TWO, "cuda:2 cuda:7", "set DEVICE=cuda:0 or cuda:1"),
        (replace(TWO, devices=()), "auto cuda", "restart the machine"),  # a broken GPU
        (
            card(TWO, "7.0"),
            "auto cuda cuda:0",
            "run make install CUDA=12 (for an image: take the tag cuda12)",
        ),
        (card(CUDA12, "6.1"), "auto cuda", "use a GPU with one of these"),
        (card(TWO, "6.1"), "auto cuda", "use a GPU with one of these"),
        (card(TWO, "7.2"), "auto", "(for an image: take the tag cuda12)"),
        (card(TWO, "11.0"), "auto", "use a GPU with one of these"),
        (card(replace(TWO, architectures=["sm_86"]), "8.0"), "auto", "use a GPU with one of these"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_an_error_with_a_remedy(
    gpus: Gpus, devices: str, remedy: str
) -> None:
    for device in devices.split():
        with pytest.raises(ModelLoadError) as error:
            choose_device(device, gpus)
        text = str(error.value)
        assert text.startswith(f"DEVICE={device}: ")
        assert text.endswith(f"{remedy}, or set DEVICE=cpu")
        assert "\n" not in text


def test_auto_warns_of_a_container_without_the_runtime(caplog: pytest.LogCaptureFixture) -> None:
    for gpus in (NONE, CPU_BUILD, replace(CPU_BUILD, module=True)):
        choose_device("auto", gpus)
    assert caplog.text == ""
    choose_device("auto", BARE)
    assert "--gpus all" in caplog.text


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("100000 100000", 1), ("150000 100000", 1), ("50000 100000", 1), ("max 100000", None)],
)
def test_the_quota_of_a_container_limits_the_cpus(
    tmp_path: Path, quota: str, cpus: int | None
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    without = available_cpus(tmp_path / "none")
    assert available_cpus(tmp_path / "cpu.max") == (cpus or without)


def test_a_quota_above_the_cpus_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("6400000 100000\n")
    assert available_cpus(tmp_path / "cpu.max") == available_cpus(tmp_path / "none")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, for thread priorities")
def test_only_the_calling_thread_gets_a_lower_priority() -> None:
    seen: list[int] = []

    def work() -> None:
        give_way(3)
        give_way(2)
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        give_way(50)  # 19 is the lowest priority
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [min(before + 5, 19), 19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
