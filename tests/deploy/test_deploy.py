"""Claims of docs/operations.md: metrics, and copying a store."""

from __future__ import annotations

import re
import shutil
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from rag.store.edge.store import EdgeStore
from tests.support.paths import ROOT
from tests.support.rag.engines import CLIP, make_points
from tests.support.serving import Server

pytestmark = pytest.mark.service

PAGE = (ROOT / "docs" / "operations.md").read_text()


def test_every_named_metric_is_served(server: Server) -> None:
    httpx.post(f"{server.url}/embed/text", json={"text": "a"})
    served = httpx.get(f"{server.url}/metrics").text
    metrics = set(re.findall(r"`(vision_encoder_\w+)`", PAGE))
    assert metrics
    for metric in metrics:
        assert f"# TYPE {metric} " in served, metric


def test_an_embedded_store_can_be_copied_and_put_back(tmp_path: Path) -> None:
    with closing(EdgeStore(tmp_path / "here")) as store:
        store.open("a", CLIP).upsert(make_points(20))
    shutil.copytree(tmp_path / "here", tmp_path / "copy", symlinks=True)
    shutil.rmtree(tmp_path / "here")
    with closing(EdgeStore(tmp_path / "elsewhere" / "there")) as empty:
        assert empty.published("a") is None
    shutil.rmtree(tmp_path / "elsewhere" / "there")
    shutil.copytree(tmp_path / "copy", tmp_path / "elsewhere" / "there", symlinks=True)
    with closing(EdgeStore(tmp_path / "elsewhere" / "there")) as store:
        held = store.published("a")
        assert held is not None
        assert held.count() == 20
