"""Wrong usage of the vision-rag command, its variables, its inputs and its help."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from rag.cli.errors import MESSAGES
from rag.cli.parser import main
from tests.support.rag.command import Run
from tests.support.rag.engines import closed_port


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.png").write_text(name)
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "details"),
    [
        (("search",), "no_query", ""),
        (("search", ""), "invalid_request", "text.0: "),
        (("search", "a", "--filter", "{"), "bad_filter", "--filter is not JSON: "),
        (("search", "a", "--filter", '{"all": []}'), "bad_filter", "--filter: "),
        (("search", "a", "--weight", "1", "--weight", "2"), "invalid_request", "weights"),
        (("search", "a", "--top-k", "0"), "invalid_request", "top_k: "),
        (("search", "--like", "nobody"), "image_not_found", "'nobody'"),
        (("search", "--image", "http://example.com/a.png"), "invalid_request", "only a service"),
        (("search", "--image", "/nowhere.png"), "unreadable", "/nowhere.png: cannot read the file"),
        (("search", "a", "--collection", "never"), "collection_not_found", "'never'"),
        (("search", "a", "--collection", "no/name"), "invalid_request", "collection: "),
        (("stats", "--collection", "never"), "collection_not_found", "'never'"),
        (("duplicates", "--collection", "never"), "collection_not_found", "'never'"),
        (("index", "/nowhere"), "no_such_path", "/nowhere"),
        (("index", ""), "empty_path", ""),
    ],
)
def test_a_mistake_is_explained_and_the_status_is_1(
    run_local: Run, folder: Path, arguments: tuple[str, ...], code: str, details: str
) -> None:
    run_local("index", folder)
    status, out, err = run_local(*arguments)
    assert (status, out) == (1, "")
    first, *rest = err.strip().splitlines()
    assert first == f"error: {MESSAGES[code].en}"
    assert len(rest) == bool(details)
    assert details in err


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--dao-id", "", "argument --dao-id: "),
        ("--dao-id", "x" * 257, "argument --dao-id: "),
        ("--dao-id", os.fsdecode(b"\xff"), "is not UTF-8"),
        ("--tag", os.fsdecode(b"\xff"), "is not UTF-8"),
    ],
)
@pytest.mark.parametrize("command", ["index", "search"])
def test_a_value_that_cannot_be_stored_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], command: str, option: str, value: str, why: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "x", option, value])
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "abc", "1.5"])
def test_an_invalid_number_of_workers_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], number: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["index", "x", f"--workers={number}"])
    assert ended.value.code == 2
    why = f"argument --workers: '{number}' is not a whole number of at least 1"
    assert why in capsys.readouterr().err


def test_a_folder_without_pictures_is_an_error(run_local: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    status, _, err = run_local("index", empty)
    line = f"error: {MESSAGES['no_pictures'].en}\ndetails: no pictures in {empty}\n"
    assert (status, err) == (1, line)


def test_an_unreachable_service_fails_the_command_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("VISION_ENCODER_URL", url)
    began = time.monotonic()
    for arguments in (["search", "a"], ["index", str(folder)]):
        assert main(arguments) == 1
        first, details = capsys.readouterr().err.splitlines()
        assert first == f"error: {MESSAGES['unreachable'].en}"
        assert url in details
    assert time.monotonic() - began < 10  # a retry would wait for up to a minute


def test_folders_are_indexed_without_standard_input(
    run_local: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)  # as under a service manager
    assert run_local("index", folder)[0] == 0
    status, _, err = run_local("index", "-")
    assert (status, err) == (1, f"error: {MESSAGES['no_standard_input'].en}\n")


def test_failures_are_printed_and_written_only_to_a_given_file(
    run_local: Run, tmp_path: Path
) -> None:
    for number in range(25):
        (tmp_path / f"{number:02}.png").write_text("broken")
    status, _, err = run_local("index", tmp_path)
    assert (status, err.count("\nfailed ")) == (3, 25)
    assert list(Path().iterdir()) == []
    status, _, err = run_local("index", tmp_path, "--failures", "list.jsonl")
    assert (status, err.count("\nfailed ")) == (3, 20)
    assert err.endswith("\nand 5 more\nfull list: list.jsonl\n")
    assert len(Path("list.jsonl").read_text().splitlines()) == 25


def test_an_unwritable_list_of_failures_is_an_error(
    run_local: Run, folder: Path, tmp_path: Path
) -> None:
    (folder / "broken.png").write_text("broken")
    status, _, err = run_local("index", folder, "--failures", tmp_path)
    assert status == 1
    assert f"error: {MESSAGES['failures_unwritable'].en}\n" in err
    assert f"details: cannot write {tmp_path}: Is a directory" in err


def test_a_list_of_failures_replaces_a_link_but_not_the_file_that_it_leads_to(
    run_local: Run, folder: Path, tmp_path: Path
) -> None:
    (folder / "broken.png").write_text("broken")
    mine, report = tmp_path / "mine", folder / "list.jsonl"
    mine.write_text("precious")
    for plant in (report.symlink_to, report.hardlink_to):
        plant(mine)
        for _ in range(2):  # the second run replaces the list of the first one
            assert run_local("index", folder / "broken.png", "--failures", report)[0] == 3
            assert mine.read_text() == "precious"
            assert not report.is_symlink()
            assert len(report.read_text().splitlines()) == 1
            assert report.stat().st_mode & 0o777 == 0o600
        report.unlink()
    report.mkdir()
    assert run_local("index", folder / "broken.png", "--failures", report)[0] == 1
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_list_of_failures_can_go_to_an_open_file(run_local: Run, folder: Path) -> None:
    (folder / "broken.png").write_text("broken")
    reading, writing = os.pipe()
    assert run_local("index", folder, "--failures", f"/dev/fd/{writing}")[0] == 3
    os.close(writing)
    with open(reading) as report:
        assert len(report.readlines()) == 1


def test_a_name_that_is_not_utf_8_can_be_given(run_local: Run, folder: Path) -> None:
    run_local("index", folder)
    status, _, err = run_local("delete", os.fsdecode(b"caf\xe9.png"))
    assert status == 1
    assert "details: not indexed for dao_id default: caf\\udce9.png\n" in err


@pytest.mark.parametrize(
    ("name", "value"), [("IMAGE_SEARCH_COLLECTION", "no/name"), ("VISION_ENCODER_TIMEOUT", "soon")]
)
def test_an_invalid_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert main(["stats"]) == 1
    first, details = capsys.readouterr().err.splitlines()
    assert first == f"error: {MESSAGES['invalid_variable'].en}"
    assert details.startswith(f"details: {name}={value}: ")


def test_a_reindex_without_the_files_is_an_error(
    run_local: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_local("index", folder)
    for file in folder.iterdir():
        file.unlink()
    monkeypatch.setenv("TEST_MODEL", "new")
    status, _, err = run_local("reindex")
    assert status == 1
    assert f"error: {MESSAGES['incomplete_reindex'].en}\n" in err
    assert err.count(MESSAGES["lost_file"].en) == 2
    status, _, err = run_local("reindex", "--drop-missing")
    assert status == 1
    assert f"error: {MESSAGES['nothing_left'].en}\n" in err


@pytest.mark.parametrize(
    "command", [None, "index", "search", "duplicates", "delete", "stats", "reindex"]
)
def test_help_explains_the_command(capsys: pytest.CaptureFixture[str], command: str | None) -> None:
    with pytest.raises(SystemExit) as done:
        main([*([command] if command else []), "--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert len(out) > 200
    assert "Exit status: 0 success" in out


def test_local_without_torch_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    assert main(["stats", "--local"]) == 1
    assert capsys.readouterr().err == f"error: {MESSAGES['torch_missing'].en}\n"
