"""The pinned packages: exactly those that are needed, and no package index."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from tests.support.deploy.pins import needed, pinned
from tests.support.paths import ROOT


def test_the_image_installs_only_what_service_and_router_need() -> None:
    assert pinned("constraints.txt").keys() == needed("service", "router")
    together = pinned("constraints.txt") | pinned("constraints-dev.txt")
    assert together.keys() == needed("dev", "service", "router")


def test_what_is_installed_here_is_what_is_pinned() -> None:
    for name, version in (pinned("constraints.txt") | pinned("constraints-dev.txt")).items():
        assert importlib.metadata.version(name) == version, name


def test_no_file_names_a_package_index() -> None:
    for file in ("constraints.txt", "constraints-dev.txt", "pyproject.toml", "bentofile.yaml"):
        text = Path(ROOT / file).read_text()
        assert not re.search(r"index-url|find-links|https?://|file:", text), file
