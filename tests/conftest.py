"""Marks, required tools, Hypothesis's profile, and fixtures that several folders use."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import hypothesis
import pytest

if TYPE_CHECKING:
    from bento.encoder.model import Encoder
    from tests.support.reference import Reference
    from tests.support.serving import Server

_NOT_UNIT: Final = ("service", "browser", "slow")
_MODULE_MARK: Final = re.compile(r"^pytestmark = .*\bmark\.(?:service|browser|slow)\b", re.M)

hypothesis.settings.register_profile("project", deadline=None, database=None)
hypothesis.settings.load_profile("project")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m unit`, skip marked modules without importing them: most import torch."""
    if config.option.markexpr == "unit" and collection_path.suffix == ".py":
        return bool(_MODULE_MARK.search(collection_path.read_text())) or None
    return None


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.get_closest_marker(name) for name in _NOT_UNIT):
            item.add_marker(pytest.mark.unit)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that was skipped because a tool in REQUIRED_TOOLS is missing."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if any(tool in reason for tool in os.environ.get("REQUIRED_TOOLS", "").split()):
            report.outcome = "failed"
            report.longrepr = f"{reason} (REQUIRED_TOOLS={os.environ['REQUIRED_TOOLS']})"
    return report


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the machine's environment variables from the tests."""
    for name in (
        *("MODEL_NAME", "VISION_MODEL_NAME", "DEVICE", "VISION_DEVICE", "DTYPE", "PORT"),
        *("QDRANT_ENABLED", "QDRANT_HOST", "QDRANT_PATH"),
        *("API_KEY", "METRICS_PUBLIC", "UI_PUBLIC", "CORS_ALLOWED_ORIGINS", "HOST"),
        *("ROOT_PATH", "FORWARDED_ALLOW_IPS", "KEEP_ALIVE_SECONDS"),
        *("VISION_ENCODER_URL", "VISION_ENCODER_TIMEOUT"),
        *("MAKEFLAGS", "MFLAGS", "MAKELEVEL"),  # set when make runs these tests
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    from bento import Encoder, Settings
    from tests.support.paths import BUNDLED

    return Encoder.load(Settings(model_name=BUNDLED, device="cpu", dtype="float32"))


@pytest.fixture(scope="session")
def reference() -> Reference:
    import open_clip

    from tests.support.paths import BUNDLED
    from tests.support.reference import Reference

    model, preprocess = open_clip.create_model_from_pretrained(BUNDLED)
    return Reference(model, preprocess, open_clip.get_tokenizer(BUNDLED))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from tests.support.serving import serving

    with serving(tmp_path_factory.mktemp("service")) as served:
        yield served
