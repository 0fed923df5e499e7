"""Inject faults into a served service, with a module that Python imports at its start."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

_MODULE = """
import sys
from importlib.abc import MetaPathFinder


class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "bento.runners.runners":
            sys.meta_path.remove(self)
{fault}


sys.meta_path.insert(0, Finder())
"""


def broken(folder: Path, fault: str) -> dict[str, str]:
    """Return environment variables that make the service run `fault` before it loads the model."""
    (folder / "sitecustomize.py").write_text(_MODULE.format(fault=indent(fault, 12 * " ")))
    return {"PYTHONPATH": str(folder)}
