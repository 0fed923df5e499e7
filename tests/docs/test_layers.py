"""The modules that an import loads, in a fresh interpreter. `make lint` checks the import rules."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.service


def loaded_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "never"),
    [
        ("import rag, rag.cli.parser", {"torch", "open_clip", "bentoml", "PIL"}),
        ("import rag.store.edge.store, rag.store.server.store", {"torch", "open_clip", "bentoml"}),
        ("import router_client", {"bentoml", "numpy"}),
        ("import bento", {"torch", "open_clip", "bentoml"}),
        ("import loadtests.locustfile", {"torch", "bento", "rag", "router_client", "models"}),
        ("import service", {"torch", "open_clip", "qdrant_client", "qdrant_edge"}),
    ],
)
def test_an_import_loads_no_package_that_it_does_not_need(statement: str, never: set[str]) -> None:
    assert not loaded_after(statement) & never


def test_the_unit_tests_import_no_torch() -> None:
    loaded = loaded_after("import pytest; pytest.main(['-m', 'unit', '--collect-only', '-qq'])")
    assert "pydantic" in loaded
    assert not loaded & {"torch", "open_clip", "bentoml"}
