"""The command's errors and failures in English and Ukrainian."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from bento.contract.errors import NotAnImage, StoreFull, VisionEncoderError, VisionError
from rag.cli.errors import MESSAGES, WORDS, explain, language
from rag.cli.parser import main
from rag.indexing.backends import Backend
from rag.indexing.failures import Code
from tests.support.rag.command import Run

# Codes that the command never meets.
NOT_MET = {
    "error": "a base class",
    "rag_error": "a base class",
    "model_not_found": "only /v1 takes the name of a model",
    "unsupported_media_type": "the client sends the right content type",
}
# Codes that the client gives to a `VisionEncoderError`, which have no class of their own.
OF_THE_CLIENT = {"unreachable", "bad_answer", "http_error"}
OF_THE_COMMAND = {"invalid_variable", "output_unwritable"}


def codes(kind: type[VisionError] = VisionError) -> Iterator[str]:
    yield kind.code
    for below in kind.__subclasses__():
        if below.__module__.startswith("bento."):
            yield from codes(below)


def test_every_code_that_the_command_can_meet_has_both_languages() -> None:
    tree, local = set(codes()), set(get_args(Code))
    assert len(tree) > 20
    assert len(local) > 10
    assert NOT_MET.keys() <= tree
    assert MESSAGES.keys() == (tree - NOT_MET.keys()) | local | OF_THE_CLIENT | OF_THE_COMMAND
    for code, message in MESSAGES.items():
        assert re.search("[a-z]{3}", message.en), code
        assert not re.search("[а-яіїєґ]", message.en), code
        assert re.search("[а-яіїєґ]{3}", message.uk), code


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "uk_UA.UTF-8"}, "uk"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LC_MESSAGES": "uk_UA", "LANG": "de_DE"}, "uk"),
        ({"LC_ALL": "C", "LC_MESSAGES": "uk_UA", "LANG": "uk_UA"}, "en"),
        ({"LC_ALL": "", "LANG": "uk"}, "uk"),
    ],
)
def test_the_locale_decides_the_language(environment: dict[str, str], expected: str) -> None:
    assert language(environment) == expected


def test_details_follow_only_a_message_that_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain("store_full", "3 MB free") == (MESSAGES["store_full"].en, "details: 3 MB free")
    assert explain("busy", "3 before you") == (MESSAGES["busy"].en, None)
    monkeypatch.setenv("LANG", "uk_UA.UTF-8")
    assert explain("store_full", "3 MB free") == (MESSAGES["store_full"].uk, "подробиці: 3 MB free")


def test_a_code_without_a_translation_shows_the_sentence_of_the_api() -> None:
    assert explain("brand_new", "use a newer client") == ("use a newer client", None)


@pytest.mark.parametrize(
    ("error", "locale", "expected"),
    [
        (StoreFull("3 MB free"), "en_US", "error: the disk of the store is full: "),
        (StoreFull("3 MB free"), "uk_UA", "помилка: диск сховища заповнений: "),
        (VisionEncoderError("what?", code="brand_new"), "uk_UA", "помилка: what?\n"),
    ],
)
def test_an_error_is_printed_in_the_users_language(
    error: VisionError,
    locale: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LANG", locale)

    def failing(local: bool) -> Backend:
        raise error

    assert main(["stats"], opened=failing) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(expected)


def test_ctrl_c_stops_the_command_with_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(local: bool) -> Backend:
        raise KeyboardInterrupt

    assert main(["stats"], opened=interrupted) == 130
    assert capsys.readouterr().err == f"{WORDS['interrupted'].en}\n"


@pytest.mark.parametrize(
    ("locale", "line"),
    [
        ("en_US.UTF-8", "failed {}: not an image: convert it to JPEG, PNG, WebP, GIF"),
        ("uk_UA.UTF-8", "не оброблено {}: це не зображення: перетворіть файл на JPEG, PNG"),
    ],
)
def test_a_pdf_is_reported_in_the_users_language(
    run_local: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locale: str, line: str
) -> None:
    monkeypatch.setenv("LANG", locale)
    pdf = tmp_path / "manual.pdf"
    pdf.write_bytes(b"%PDF-1.7")
    status, _, err = run_local("index", pdf, "--failures", "failed.jsonl")
    assert status == 3
    assert line.format(pdf) in err
    failure = json.loads(Path("failed.jsonl").read_text())
    assert failure == {
        "path": str(pdf),
        "code": NotAnImage.code,
        "why": "these bytes are not a picture",
    }


def test_details_of_a_failure_follow_its_line(run_local: Run, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "lost.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "a.png").write_bytes(b"A")
    status, _, err = run_local("index", tmp_path)
    lines = err.splitlines()
    where = lines.index(f"failed {tmp_path / 'lost.png'}: {MESSAGES['unreadable'].en}")
    assert lines[where + 1] == "  details: the target of the link does not exist"
    assert status == 3


def test_only_the_first_20_failures_are_printed(run_local: Run, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(22):
        (folder / f"{n}.png").touch()
    status, _, err = run_local("index", folder, "--failures", tmp_path / "failed.jsonl")
    assert status == 3
    assert err.count(MESSAGES["empty_file"].en) == 20
    assert err.endswith(f"and 2 more\nfull list: {tmp_path / 'failed.jsonl'}\n")
    assert len((tmp_path / "failed.jsonl").read_text().splitlines()) == 22
