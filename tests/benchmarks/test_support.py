"""The inputs, the command line and the report of the benchmarks."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.forward import by_batch, peak_flops
from benchmarks.support.command import parse, parser, report
from benchmarks.support.inputs import TEXTS, UKRAINIAN, checkpoint, photos
from benchmarks.support.record import Result, table
from loadtests.samples import percentile
from tests.support.paths import BUNDLED


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 50) == 2.0
    assert percentile(range(1, 101), 95) == 95
    assert percentile([7.0], 99) == 7.0


def test_photos_are_small_jpegs_and_the_same_every_time() -> None:
    files = photos(3)
    assert files == photos(3)
    assert len(set(files)) == 3
    for data in files:
        assert 10_000 < len(data) < 25_000
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size) == ("JPEG", (320, 240))


def test_the_texts_are_different_short_queries() -> None:
    assert len(set(TEXTS)) == len(set(UKRAINIAN)) == 32
    assert {len(text.split()) for text in TEXTS} == set(range(2, 13))


def test_shapes_is_the_bundled_model() -> None:
    assert checkpoint("shapes") == BUNDLED


def test_the_peak_of_known_gpus_is_known() -> None:
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA L40S") != peak_flops("NVIDIA L4")
    assert peak_flops("Some GPU") is None
    assert peak_flops(None) is None


def test_rates_by_batch_size_have_a_column_each() -> None:
    rows = [
        {"tower": "image", "dtype": "float32", "batch": 1, "rate": 11.2},
        {"tower": "image", "dtype": "float32", "batch": 8, "rate": 16.2},
        {"tower": "text", "dtype": "float32", "batch": 8, "rate": 137.0},
    ]
    made = by_batch(rows)
    assert made.columns[2:] == ["batch 1", "batch 8"]
    assert made.rows == [["image", "float32", 11.2, 16.2], ["text", "float32", None, 137.0]]


def test_a_report_is_tables_notes_and_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse(parser("Measure.\n\nMore."), ["--quick"])
    made = table(("a", "b"), [(1, None), (0.12345, 1234.5)])
    report("startup", options, [made], {"x": 1}, ["One run."])
    *shown, note, last = capsys.readouterr().out.splitlines()
    assert shown == ["| a | b |", "| --- | --- |", "| 1 | – |", "| 0.123 | 1,234 |", ""]
    assert note == "One run."
    record = json.loads(last)
    assert record["command"] == "python -m benchmarks.startup --quick"
    assert record["model"] == "shapes"
    assert record["results"] == {"x": 1}
    assert "cores" in record["hardware"]
    assert "python" in record["versions"]


def test_a_saved_report_describes_itself_and_keeps_its_title(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.json"
    for title, value in (("Measure", 1.0), ("Edited", 2.0)):
        options = parse(parser("Measure.\n\nMore.", model=False), ["--save", str(path)])
        report("search", options, [table(("a",), [(value,)])], None, ["One run."])
        saved = Result.read(path)
        assert saved.title == title
        assert saved.tables[0].rows == [[value]]
        saved.model_copy(update={"title": "Edited"}).write(path)
    assert saved.command == "python -m benchmarks.search"
    assert saved.notes == ["One run."]
    assert abs((saved.date - datetime.datetime.now(datetime.UTC).date()).days) <= 1
    assert "load average" in saved.hardware


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--seconds", "1", "--save"], " --seconds 1"),
        (["--save", "a.json", "--seconds", "1"], " --seconds 1"),
        (["--save=a.json"], ""),
    ],
)
def test_the_reported_command_has_no_save(
    given: list[str], kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = parse(parser("x", model=False, seconds=(1.0, 1.0)), given)
    options.save = None
    report("search", options, [], None)
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["command"] == f"python -m benchmarks.search{kept}"


def test_a_quick_run_is_not_saved(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(parser("x"), ["--quick", "--save"])
    assert left.value.code == 2
    assert "--save keeps measurements" in capsys.readouterr().err
