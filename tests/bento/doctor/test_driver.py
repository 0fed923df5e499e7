"""The NVIDIA driver chooses the set of packages, with Python's standard library alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bento.doctor.driver import SETS, Driver, choose, main, problem, read

CUDA12, CUDA13 = SETS["12"], SETS["13"]


class Nvml:
    """NVIDIA's library, in the version of `driver`, or without a loaded driver."""

    def __init__(self, driver: str) -> None:
        self._driver = driver

    def nvmlInit_v2(self) -> int:
        return 0 if self._driver else 9  # NVML_ERROR_DRIVER_NOT_LOADED

    def nvmlSystemGetDriverVersion(self, version: Any, size: int) -> int:
        version.value = self._driver.encode()
        return 0

    def nvmlShutdown(self) -> int:
        return 0


def missing(_: str) -> Any:
    raise OSError("cannot open shared object file")


PROPRIETARY = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build  (dvs-builder@u)
GCC version:  gcc version 13.2.0
"""


@pytest.mark.parametrize(
    ("module", "library", "driver"),
    [
        ("", None, Driver()),
        ("", "", Driver("", library=True)),
        ("", "535.183.01", Driver("535.183.01", library=True)),
        (PROPRIETARY, "535.183.06", Driver("535.183.06", library=True)),
        (PROPRIETARY, "", Driver("535.183.01", library=True)),  # updated but not restarted
        (PROPRIETARY, None, Driver("535.183.01", library=False)),
        (OPEN, None, Driver("580.95.05", library=False)),
    ],
)
def test_the_library_or_else_the_kernel_module_tells_the_version(
    tmp_path: Path, module: str, library: str | None, driver: Driver
) -> None:
    if module:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        (tmp_path / "proc/driver/nvidia/version").write_text(module)
    load = missing if library is None else lambda _: Nvml(library)
    assert read(tmp_path, load) == driver


@pytest.mark.parametrize(
    ("version", "chosen"),
    [
        ("", CUDA13),
        ("470.256.02", CUDA12),
        ("525.60.13", CUDA12),
        ("579.99", CUDA12),
        ("580.65.06", CUDA13),
        ("610.10", CUDA13),
    ],
)
def test_driver_580_and_newer_get_the_newest_packages(version: str, chosen: Any) -> None:
    driver = Driver(version, library=True)
    assert choose(driver)[0] == chosen
    assert choose(driver, installed="")[0] == chosen
    for each in SETS.values():
        assert choose(driver, installed=each.file)[0] == each
    for cuda, each in SETS.items():
        assert choose(driver, cuda, installed=chosen.file)[0] == each


@pytest.mark.parametrize("cuda", ["11", "12.8", "cpu", "/usr/local/cuda"])
def test_another_cuda_version_names_the_allowed_ones(
    cuda: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--cuda", cuda], Driver())
    assert end.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"CUDA={cuda}: allowed are CUDA=12 and CUDA=13")


@pytest.mark.parametrize(
    ("driver", "chosen", "remedy"),
    [
        (Driver("535.1", library=True), CUDA12, ""),
        (Driver("580.1", library=True), CUDA13, ""),
        (Driver(), CUDA13, "install NVIDIA driver 535 or newer"),
        (Driver("470.1", library=True), CUDA12, "update the driver to 535 or newer"),
        (
            Driver("535.1", library=True),
            CUDA13,
            "run make install CUDA=12, or update the driver to 580 or newer",
        ),
        (
            Driver("535.1", library=False),
            CUDA12,
            "start it with the NVIDIA runtime (--gpus all, or docker-compose.gpu.yml)",
        ),
    ],
)
def test_a_problem_has_a_remedy(driver: Driver, chosen: Any, remedy: str) -> None:
    found, advice = problem(driver, chosen)
    assert advice == remedy
    assert bool(found) == bool(remedy)
    assert not found or driver.version in found


OLD, NONE = Driver("470.1", library=True), Driver()
BARE, FINE = Driver("535.1", library=False), Driver("535.1", library=True)


@pytest.mark.parametrize(
    ("driver", "device", "status"),
    [
        *((OLD, device, 1) for device in ("auto", "cuda", "cuda:1")),
        *((driver, "auto", 0) for driver in (NONE, BARE, FINE)),
        *((driver, "cuda:1", 1) for driver in (NONE, BARE)),
        *((driver, "cpu", 0) for driver in (OLD, NONE, BARE, FINE)),
        (FINE, "cuda", 0),
    ],
)
def test_the_check_fails_only_if_the_service_could_not_run(
    driver: Driver, device: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--check", device], driver) == status
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert (f"DEVICE={device} cannot run here" in error) == bool(status)
    assert ("set DEVICE=cpu" in error) == bool(status)


def test_packages_that_need_a_newer_driver_come_with_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for cuda, warned in (("12", False), ("13", True)):
        assert main(["--cuda", cuda], FINE) == 0
        out, error = capsys.readouterr()
        assert out == f"{SETS[cuda].file}\n"
        assert error.count("\n") == 1
        assert ("warning: NVIDIA driver 535.1 is too old" in error) == warned
