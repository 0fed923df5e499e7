"""The pinned packages: exactly those that are needed, and no package index."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from bento.doctor.driver import SETS
from tests.support.deploy.pins import installed_set, needed, pinned
from tests.support.paths import ROOT

FILES = [each.file for each in SETS.values()]
OF_TORCH = re.compile(r"(torch|torchvision|triton|cuda-.*|nvidia-.*)")


def test_the_image_installs_only_what_service_and_router_need() -> None:
    service = pinned(installed_set())
    assert service.keys() == needed("service", "router")
    together = service | pinned("constraints-dev.txt")
    assert together.keys() - {"setuptools"} == needed("dev", "service", "router")


def test_what_is_installed_here_is_what_is_pinned() -> None:
    for name, version in (pinned(installed_set()) | pinned("constraints-dev.txt")).items():
        assert importlib.metadata.version(name) == version, name


def test_the_sets_differ_only_in_torch_and_its_cuda_libraries() -> None:
    packages = [pinned(file).items() for file in FILES]
    differing = {name for name, _ in packages[0] ^ packages[1]}
    assert {"torch", "torchvision"} <= differing
    assert {name for name in differing if not OF_TORCH.fullmatch(name)} == set()


def test_no_file_names_a_package_index() -> None:
    for file in (*FILES, "constraints-dev.txt", "pyproject.toml", "bentofile.yaml"):
        text = Path(ROOT / file).read_text()
        assert not re.search(r"index-url|find-links|https?://|file:", text), file
