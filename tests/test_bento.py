"""The built Bento answers as the checkout does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np

from bento import Encoder

from .conftest import ROOT, free_port, wait_until_ready


def test_the_built_bento_serves_the_bundled_model(encoder: Encoder, tmp_path: Path) -> None:
    port = free_port()
    environment = {
        **os.environ,
        "BENTOML_HOME": str(tmp_path / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "MODEL_NAME": "local-dir:models/shapes",  # below the Bento's own folder
        "DEVICE": "cpu",
        "HOST": "127.0.0.1",
        "PORT": str(port),
    }
    bentoml = [sys.executable, "-m", "bentoml"]
    built = subprocess.run(
        [*bentoml, "build"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (latest,) = (tmp_path / "bentoml" / "bentos" / "vision-encoder").glob("*/src")
    assert not (latest / "tests").exists()

    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*bentoml, "serve", "vision-encoder:latest"],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, log)
        answer = httpx.post(f"{url}/embed/text", json={"text": "a red circle"}, timeout=30).json()
        wanted = encoder.encode_texts(["a red circle"])[0]
        np.testing.assert_allclose(answer["embedding"], wanted, atol=1e-5)
    finally:
        process.terminate()
        process.wait(30)
