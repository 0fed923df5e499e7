"""`make install` chooses the packages by the driver; `make gpu-check` checks it before that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.service

CUDA12, CUDA13 = "constraints-cuda12.txt", "constraints.txt"

# Stands in for Python: the driver is DRIVER, and pip records its arguments instead of installing.
PYTHON = f"""#!{sys.executable} -S
import os, pathlib, shutil, sys
match sys.argv[1:]:
    case ["bento/doctor/driver.py", *options]:
        sys.path.insert(0, "bento/doctor")
        import driver
        version = os.environ["DRIVER"]
        sys.exit(driver.main(options, driver.Driver(version, library=bool(version))))
    case ["-m", "venv", *options, folder]:
        if options == ["--clear"]:
            shutil.rmtree(folder)
        pathlib.Path(folder, "bin").mkdir(parents=True, exist_ok=True)
        shutil.copy(sys.argv[0], f"{{folder}}/bin/python")
    case ["-m", *_]:
        print(*sys.argv[1:])
"""

Make = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    (tmp_path / "bento/doctor").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "bento/doctor/driver.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for file in ROOT.glob("constraints*.txt"):
        shutil.copy(file, tmp_path)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(*arguments: str, driver: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", f"PYTHON={python}", *arguments],
            cwd=tmp_path,
            env={**os.environ, "DRIVER": driver},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def installed(done: subprocess.CompletedProcess[str]) -> str:
    """Return the pinned packages that pip got, or an empty string if it did not run."""
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    return words[words.index("-c") + 1] if "pip" in words else ""


@pytest.mark.parametrize(
    ("driver", "file"), [("", CUDA13), ("535.183.01", CUDA12), ("580.95.05", CUDA13)]
)
def test_the_driver_chooses_the_packages(make: Make, driver: str, file: str) -> None:
    done = make("install", driver=driver)
    assert installed(done) == file
    assert [file in line and driver in line for line in done.stderr.splitlines()] == [True]
    assert installed(make("install", driver=driver)) == ""


def test_the_chosen_packages_stay_until_the_other_ones_are_asked_for(
    make: Make, tmp_path: Path
) -> None:
    assert installed(make("install", "CUDA=12")) == CUDA12
    left = tmp_path / ".venv/left"
    left.touch()
    assert installed(make("install", "CUDA=12")) == ""
    assert installed(make("install")) == ""
    os.utime(tmp_path / "pyproject.toml", (2**32, 2**32))  # changed since the installation
    assert installed(make("install")) == CUDA12
    assert left.exists()
    assert installed(make("install", "CUDA=13")) == CUDA13
    assert not left.exists()  # such as the libraries of the other CUDA version


def test_an_unknown_cuda_version_installs_nothing(make: Make, tmp_path: Path) -> None:
    for _ in range(2):
        done = make("install", "CUDA=11")
        assert done.returncode != 0
        assert "CUDA=12 and CUDA=13" in done.stderr
        assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("driver", "device", "arguments"),
    [("470.256.02", "auto", []), ("", "cuda:1", []), ("535.183.01", "cuda", ["CUDA=13"])],
)
def test_gpu_check_stops_before_a_useless_installation(
    make: Make, tmp_path: Path, driver: str, device: str, arguments: list[str]
) -> None:
    (tmp_path / ".env").write_text(f"VISION_DEVICE={device}\n")
    done = make("gpu-check", *arguments, driver=driver)
    assert done.returncode != 0
    assert f"DEVICE={device} cannot run here: " in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(("driver", "device"), [("470.256.02", "cpu"), ("", "auto")])
def test_gpu_check_continues_if_the_service_can_run(make: Make, driver: str, device: str) -> None:
    done = make("gpu-check", f"DEVICE={device}", driver=driver)
    assert installed(done)
    assert f"DEVICE={device} uses the CPU: " in done.stderr
    assert "-m bento.doctor" in done.stdout
    assert "uses the CPU" not in make("gpu-check", f"DEVICE={device}", driver=driver).stderr


def test_the_choice_needs_no_installed_package(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", f"{ROOT}/bento/doctor/driver.py", "--cuda", "12"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{CUDA12}\n")
