"""The wheel: its files, and that it works without the packages of any extra."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support.deploy.pins import needed
from tests.support.paths import ROOT

pytestmark = pytest.mark.service

PACKAGES = ("bento", "rag", "router_client")
PIP: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]

# Imports everything that needs no extra. `bento.Encoder` is the only public name that needs one.
IMPORTS = """
import importlib, importlib.util, pkgutil

for name in ("PIL", "bentoml", "open_clip", "starlette", "torch", "torchvision", "uvicorn"):
    assert importlib.util.find_spec(name) is None, f"{name} is not absent"

import bento, bento.contract, rag, router_client

for module in pkgutil.walk_packages(bento.contract.__path__, "bento.contract."):
    importlib.import_module(module.name)
for package in (bento, rag, router_client):
    assert "/site-packages/" in package.__file__, package.__file__
    for name in set(package.__all__) - {"Encoder"}:
        getattr(package, name)

bento.Settings()
rag.RagSettings()
router_client.VisionEncoderClient().close()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the checkout, because setuptools writes into the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT, folder / "checkout", ignore=unwanted)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*PIP, *build, "-w", folder, folder / "checkout"], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel and link its dependencies in a new environment; return its folder."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    install: list[str | Path] = ["install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([*PIP, "--python", folder / "bin" / "python", *install], check=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    for name in needed():
        _link(importlib.metadata.distribution(name), packages)
    return folder


def _link(distribution: importlib.metadata.Distribution, packages: Path) -> None:
    for file in distribution.files or []:
        if ".." not in file.parts:
            link = packages / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(str(distribution.locate_file(file))))


def run(installed: Path, *command: str) -> str:
    """Run a command of the environment outside the checkout; return its output."""
    done = subprocess.run(
        [installed / "bin" / command[0], *command[1:]],
        cwd=installed,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    expected = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    expected |= {"service.py"}
    assert "rag/web/page/index.html" in expected
    held = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected - {"bento/revision.txt"}  # `make bento` writes that file


def test_the_public_names_need_no_extra(installed: Path) -> None:
    run(installed, "python", "-c", IMPORTS)


def test_the_commands_need_no_extra(installed: Path) -> None:
    assert "vision-rag" in run(installed, "vision-rag", "--help")
    assert "--config" in run(installed, "python", "-m", "router_client", "--help")
