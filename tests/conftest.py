"""What several test modules share: the bundled model, pictures, a served service."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from bento import Encoder, Settings
from models.shapes.scenes import draw_scene, sample_scene

hypothesis.settings.register_profile("project", deadline=None, database=None)
hypothesis.settings.load_profile("project")

ROOT = Path(__file__).parent.parent
BUNDLED = f"local-dir:{ROOT / 'models' / 'shapes'}"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no variable of the machine decide what a test sees."""
    for name in (
        *("MODEL_NAME", "VISION_MODEL_NAME", "DEVICE", "VISION_DEVICE", "DTYPE", "PORT"),
        *("QDRANT_ENABLED", "QDRANT_HOST", "QDRANT_PATH"),
        *("API_KEY", "METRICS_PUBLIC", "UI_PUBLIC", "CORS_ALLOWED_ORIGINS", "HOST"),
        *("VISION_ENCODER_URL", "VISION_ENCODER_TIMEOUT"),
        *("MAKEFLAGS", "MFLAGS", "MAKELEVEL"),  # a make of ours that runs these tests
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return Encoder.load(Settings(model_name=BUNDLED, device="cpu", dtype="float32"))


class Reference:
    """OpenCLIP used by hand, in float32, one item at a time."""

    def __init__(self, model: Any, preprocess: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.preprocess = preprocess
        self.tokenizer = tokenizer

    def text(self, text: str, normalize: bool) -> Any:
        with torch.inference_mode():
            return self.model.encode_text(self.tokenizer([text]), normalize=normalize)[0]

    def image(self, image: Image.Image, normalize: bool) -> Any:
        with torch.inference_mode():
            return self.model.encode_image(self.preprocess(image)[None], normalize=normalize)[0]

    def texts(self, texts: Iterable[str], *, normalize: bool = True) -> Any:
        return torch.stack([self.text(text, normalize) for text in texts]).numpy()

    def images(self, images: Iterable[Image.Image], *, normalize: bool = True) -> Any:
        return torch.stack([self.image(image, normalize) for image in images]).numpy()


@pytest.fixture(scope="session")
def reference() -> Reference:
    model, preprocess = open_clip.create_model_from_pretrained(BUNDLED)
    return Reference(model, preprocess, open_clip.get_tokenizer(BUNDLED))


def scene_image(seed: int, side: int = 200) -> Image.Image:
    rng = np.random.default_rng(seed)
    return draw_scene(sample_scene(rng), rng, side)


def file_bytes(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass(frozen=True)
class Server:
    """A served service."""

    url: str
    pid: int
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)


Serve = Callable[..., Any]


@contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Server]:
    """Run `bentoml serve` as users do, in a process of its own, until the block ends."""
    port = free_port()
    log = folder / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", "service:VisionEncoder"],
            cwd=ROOT,
            env={
                **os.environ,
                "BENTOML_DO_NOT_TRACK": "True",
                "MODEL_NAME": BUNDLED,
                "DEVICE": "cpu",
                "DTYPE": "float32",
                "PORT": str(port),
                "API_KEY": "",
                "QDRANT_ENABLED": "true",
                "QDRANT_PATH": str(folder / "qdrant"),
                "THUMBNAILS_PATH": str(folder / "thumbnails"),
                **environment,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, log)
        yield Server(url, process.pid, log)
    finally:
        process.terminate()
        process.wait(30)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not ready within 120 s: {log.read_text()}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("service")) as served:
        yield served
