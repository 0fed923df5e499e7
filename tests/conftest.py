"""Fixtures that several folders of tests use, and Hypothesis's profile."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import open_clip
import pytest

from bento import Encoder, Settings
from tests.support.paths import BUNDLED
from tests.support.reference import Reference
from tests.support.serving import Server, serving

hypothesis.settings.register_profile("project", deadline=None, database=None)
hypothesis.settings.load_profile("project")


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


@pytest.fixture(scope="session")
def reference() -> Reference:
    model, preprocess = open_clip.create_model_from_pretrained(BUNDLED)
    return Reference(model, preprocess, open_clip.get_tokenizer(BUNDLED))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("service")) as served:
        yield served
