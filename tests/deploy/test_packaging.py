"""What is installed: the pinned packages are those needed, and no others."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.deploy.pins import pinned
from tests.support.paths import ROOT


def needed(*extras: str) -> set[str]:
    """Return what this project needs with these extras, directly or not."""
    found: dict[str, set[str]] = {}
    waiting = [("vision-encoder", set(extras))]
    while waiting:
        name, wanted = waiting.pop()
        name = canonicalize_name(name)
        if name in found and wanted <= found[name]:
            continue
        found.setdefault(name, set()).update(wanted)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *found[name])):
                waiting.append((requirement.name, requirement.extras))
    return found.keys() - {"vision-encoder", "setuptools"}


def test_the_image_installs_what_the_service_and_the_router_need_and_nothing_else() -> None:
    assert pinned("constraints.txt").keys() == needed("service", "router")
    together = pinned("constraints.txt") | pinned("constraints-dev.txt")
    assert together.keys() == needed("dev", "service", "router")


def test_what_is_installed_here_is_what_is_pinned() -> None:
    for name, version in (pinned("constraints.txt") | pinned("constraints-dev.txt")).items():
        assert importlib.metadata.version(name) == version, name


def test_no_file_says_where_packages_come_from() -> None:
    for file in ("constraints.txt", "constraints-dev.txt", "pyproject.toml", "bentofile.yaml"):
        text = Path(ROOT / file).read_text()
        assert not re.search(r"index-url|find-links|https?://|file:", text), file
