"""The doctor reports failed checks with remedies, and survives errors and hangs."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest

from bento.doctor import __main__ as doctor
from bento.doctor.__main__ import examine
from bento.doctor.probe import look
from tests.support.bento.doctor import CPU, failed, machine


def test_other_checks_run_in_spite_of_a_bad_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEVICE", "gpu")
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    findings = examine(machine())
    assert failed(findings) == {"settings"}
    assert findings["settings"].found.startswith("DEVICE=gpu: ")
    assert "cuda" in findings["settings"].found
    assert {"python", "GPU driver", "CUDA", "container runtime", "Qdrant"} <= set(findings)
    assert not {"memory", "weights", "port"} & set(findings)


def test_contradictory_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_IMAGE_BYTES", "60000000")
    monkeypatch.setenv("QDRANT_PORT", "0")
    found = examine(machine())["settings"].found
    assert found.startswith("MAX_IMAGE_BYTES=60000000")
    assert "QDRANT_PORT=0" in found


def test_an_invalid_key_is_reported_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "s3cret key")
    found = examine(machine())["settings"].found
    assert found.startswith("API_KEY: ")
    assert "s3cret" not in found


def test_an_old_python_fails() -> None:
    findings = examine(machine(python=(3, 10, 14)))
    assert failed(findings) == {"python"}
    assert findings["python"].found == "3.10.14"


# Output


def test_the_table_shows_a_mark_per_check_and_a_remedy_per_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("MODEL_NAME", "local-dir:[red]not markup[/red]")
    assert doctor.main([], machine(replace(CPU, model_error="no such model"))) == 1
    said = capsys.readouterr().out
    lines = said.splitlines()
    marks = {line.split("  ")[1].strip(): line.split()[0] for line in lines[1:-1]}
    assert (marks["python"], marks["weights"], marks["Qdrant"]) == ("✓", "✗", "–")
    assert "local-dir:[red]not markup[/red]" in said
    assert "to a folder with open_clip_config.json" in said
    assert doctor.main([], machine()) == 0
    assert "can run the service" in capsys.readouterr().out


def test_help_explains_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        doctor.main(["--help"])
    assert end.value.code == 0
    assert "Exit status" in capsys.readouterr().out


# Errors and hangs


def broken(*_: object) -> Any:
    raise RuntimeError("injected")


@pytest.mark.parametrize("part", ["look", "ram", "which"])
def test_a_check_that_raises_is_a_finding(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    parts: dict[str, Any] = {part: broken}
    assert doctor.main(["--json"], machine(**parts)) == 1
    said = json.loads(capsys.readouterr().out)
    assert any("injected" in c["found"] and c["remedy"] for c in said["checks"])


def test_a_check_that_hangs_is_abandoned() -> None:
    over = threading.Event()
    findings = examine(machine(ram=lambda: int(over.wait(60)), seconds=0.2))
    over.set()
    assert failed(findings) == {"memory"}
    assert "no answer within" in findings["memory"].found


def test_a_probe_that_hangs_keeps_its_earlier_results() -> None:
    begun = '{"torch": "2.15.0", "cuda": "13.2", "torch_error": ""}\nnoise\n'
    seen = look(
        "ViT-L-14", "openai", "cpu", run=lambda *_, **__: (None, begun, "no answer within 60 s")
    )
    assert (seen.torch, seen.torch_error) == ("2.15.0", "")
    assert seen.driver_error == seen.model_error == "no answer within 60 s"
    assert failed(examine(machine(seen))) == {"weights"}


def test_a_failed_import_of_torch_fails_on_every_device() -> None:
    seen = replace(CPU, torch_error="No module named 'torch'")
    assert failed(examine(machine(seen))) == {"CUDA", "weights"}
