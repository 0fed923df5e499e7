"""The packages that are pinned, and those that are needed."""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bento.doctor.driver import SETS
from tests.support.paths import ROOT


def pinned(name: str) -> dict[str, str]:
    """Return the versions that a constraints file pins, by package."""
    lines = (ROOT / name).read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(package): version for package, version in pins.items()}


def installed_set() -> str:
    """Return the constraints file whose torch is installed."""
    torch = importlib.metadata.version("torch").partition("+")[0]
    return next(each.file for each in SETS.values() if pinned(each.file)["torch"] == torch)


def needed(*extras: str) -> set[str]:
    """Return the names of all packages that this project needs with these extras."""
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
