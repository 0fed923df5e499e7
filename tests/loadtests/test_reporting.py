"""The report of a load test."""

from __future__ import annotations

from pathlib import Path

from loadtests.reporting import PLOT, SUMMARY, TIMELINE, Report
from loadtests.samples import Samples, Usage
from loadtests.shapes import SHAPES
from tests.support.loadsamples import Observed


def test_a_report_has_figures_over_time_and_warns_of_a_busy_generator(tmp_path: Path) -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    rows = observed.objectives()
    report = Report("a title", {}, rows, observed.samples, observed.spans)
    observed.samples.usages.append(Usage(1010, "generator", 0.5))
    observed.samples.usages.append(Usage(990, "generator", 9))  # before the run
    assert report.generator() == {"generator": 0.5}
    assert report.warning() is None
    observed.samples.usages.append(Usage(1011, "generator", 1.3))
    assert "90 % of a core and may have limited the load" in report.verdict()
    report.write(tmp_path)
    assert "generator 90 % of a core" in (tmp_path / SUMMARY).read_text()
    lines = (tmp_path / TIMELINE).read_text().splitlines()
    assert lines[0] == "second,user,ok,busy,failed,wrong,p50_ms,p95_ms,p99_ms"
    assert lines[1] == "0,image,10,0,0,0,9.00,9.00,9.00"
    assert len(lines) == 1 + 2 * 60
    assert (tmp_path / PLOT).read_bytes().startswith(b"\x89PNG")


def test_a_report_lists_missed_objectives_and_failures() -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    observed.add("image", 1010, 700, 11)
    observed.samples.add("text", "failed", 5, "/embed/text answered 500: out | of order")
    rows = observed.objectives()
    report = Report("a title", {"a fact": "worth knowing"}, rows, observed.samples, observed.spans)
    assert not report.passed
    assert report.verdict() == "FAIL: a title\n- image p50: 11 ms; the objective is at most 10 ms"
    text = report.tables()
    assert "**11 ms**, not ≤ 10 ms" in text
    assert "worth knowing" in text
    assert r"text: /embed/text answered 500: out \| of order" in text


def test_a_run_that_was_not_judged_fails(tmp_path: Path) -> None:
    report = Report("a title", {}, [], Samples(), [])
    assert not report.passed
    assert "stopped before its end" in report.verdict()
    report.write(tmp_path)
