"""The pinned packages."""

from __future__ import annotations

from packaging.utils import canonicalize_name

from tests.support.paths import ROOT


def pinned(name: str) -> dict[str, str]:
    """Return the versions that a constraints file pins, by package."""
    lines = (ROOT / name).read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(package): version for package, version in pins.items()}
