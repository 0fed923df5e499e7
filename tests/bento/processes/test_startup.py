"""Start-up without a service: settings, BentoML's options, and loading on a thread."""

from __future__ import annotations

import os
import threading
import time

import pytest
from uvicorn.config import HTTP_PROTOCOLS

from bento import Settings
from bento.contract.errors import ModelLoadError, NotReady
from bento.processes.startup import Startup, read_settings, service_options

GPUS = "BENTOML_DISABLE_GPU_ALLOCATION"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"API_KEY": "s3cret "}, "API_KEY: "),
        ({"API_KEY": "s3cret", "MAX_BATCH_SIZE": "0"}, "MAX_BATCH_SIZE=0: "),
        ({"API_KEY": "s3cret", "MAX_IMAGE_BYTES": "64000000"}, "MAX_IMAGE_BYTES=64000000 "),
    ],
)
def test_an_invalid_setting_ends_the_start_with_a_message_without_the_key(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        read_settings(Settings)
    assert str(caught.value).startswith(f"invalid setting: {message}")
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("device", "resources", "keeps_gpus"),
    [
        ("cpu", {"cpu": "2"}, False),
        ("auto", {"cpu": "2"}, False),
        ("cuda", {"gpu": 1}, False),
        ("cuda:1", {"gpu": 1}, True),  # BentoML's allocation would hide this GPU
    ],
)
def test_bentoml_reserves_a_gpu_and_workers_as_set(
    monkeypatch: pytest.MonkeyPatch, device: str, resources: dict[str, object], keeps_gpus: bool
) -> None:
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", "")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "before")
    monkeypatch.setenv(GPUS, "")
    monkeypatch.delenv(GPUS)
    settings = Settings(device=device, workers=3, port=8123, forwarded_allow_ips="10.0.0.0/8")
    options = service_options(settings, 65, "module:Class")
    assert options["resources"] == resources
    assert options["workers"] == 3
    assert options["http"] == {"host": "127.0.0.1", "port": 8123}
    assert options["traffic"] == {"timeout": 65}
    assert HTTP_PROTOCOLS["auto"] == "module:Class"
    assert os.environ["FORWARDED_ALLOW_IPS"] == "10.0.0.0/8"
    assert (GPUS in os.environ) == keeps_gpus


def test_a_model_that_cannot_be_loaded_is_logged_and_never_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = threading.Event()

    def load() -> None:
        failing.wait(10)
        raise ModelLoadError("no weights")

    startup = Startup(load)
    with pytest.raises(NotReady):
        _ = startup.loaded
    failing.set()
    deadline = time.monotonic() + 10
    while "the service cannot start: no weights" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not startup.done
