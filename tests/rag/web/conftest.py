"""A browser, a visit to the search page, and indexed pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from models.shapes.captions import caption
from models.shapes.scenes import Scene, draw_scene, sample_scene
from tests.support.page import CHROMIUM, COLLECTION, HOST, SCENES, Sample, Visit, visit_of
from tests.support.serving import Server


# Not for the session: Playwright's event loop would break later tests that call asyncio.run.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=10_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[f"--host-resolver-rules=MAP {HOST} 127.0.0.1"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    visit = visit_of(browser, server)
    yield visit
    visit.page.context.close()
    assert visit.wrong == []


@pytest.fixture(scope="session")
def samples(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Index held-out scenes with `vision-rag`. Their file names do not describe them."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(11)
    scenes: dict[Scene, None] = {}  # distinct, in order
    while len(scenes) < SCENES:
        scenes[sample_scene(rng, held_out=True)] = None
    samples = []
    for number, scene in enumerate(scenes):
        path = folder / f"scene {number}.png"
        draw_scene(scene, rng, side=160).save(path)
        samples.append(Sample(path, caption(scene, "en", rng), caption(scene, "uk", rng)))
    done = subprocess.run(
        [Path(sys.executable).with_name("vision-rag"), "index", folder, "--collection", COLLECTION],
        env={**os.environ, "VISION_ENCODER_URL": server.url},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return samples
