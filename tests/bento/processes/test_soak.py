"""The soak test: it finds growth in what it samples, and finds none in the service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.soak import Sample, judge


def series(**growth: float) -> list[Sample]:
    """Return 20 minutes of samples with warm-up, noise, and the given growth per hour."""
    return [
        Sample(
            at,
            700 + min(at, 200) / 10 + at % 7 + growth.get("memory_mb", 0) * at / 3600,
            40 + int(at) % 3 + int(growth.get("files", 0) * at / 3600),
            20 + int(at) % 2 + int(growth.get("threads", 0) * at / 3600),
        )
        for at in range(0, 1200, 3)
    ]


@pytest.mark.parametrize(
    ("growth", "not_met"),
    [
        ({}, []),
        ({"memory_mb": 10}, []),
        ({"memory_mb": 200}, ["memory, MB"]),  # 2.8 kB per request, at 20 requests a second
        ({"files": 60}, ["open files"]),
        ({"threads": 30}, ["threads"]),
        ({"memory_mb": 500, "files": 100}, ["memory, MB", "open files"]),
    ],
)
def test_the_soak_tells_growth_from_noise(growth: dict[str, float], not_met: list[str]) -> None:
    rows = judge(series(**growth))
    assert [row["figure"] for row in rows if row["met"] == "no"] == not_met


def test_the_soak_draws_its_samples() -> None:
    drawn = soak.plot(series(memory_mb=200))
    assert drawn.count("<polyline") == 3
    assert "memory, MB: 700 to" in drawn


@pytest.mark.slow
def test_two_minutes_of_mixed_traffic_leak_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # with 16-bit weights, torch keeps memory for each new batch shape, which looks like a leak
    monkeypatch.setenv("DTYPE", "float32")
    plot = tmp_path / "soak.svg"
    argv = ["--model", "shapes", "--minutes", "2", "--plot", str(plot)]
    soak.main(argv)  # exits with 1 if something grows or an answer is wrong
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["results"]["wrong"] == {}
    assert sum(record["results"]["statuses"].values()) > 100
    assert plot.read_text().startswith("<svg")
