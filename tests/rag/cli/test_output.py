"""What the command prints of paths, payloads, ids and errors that strangers have chosen."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from bento.contract.base import printable, printable_json
from bento.contract.errors import VisionError
from rag.cli import output
from rag.cli.output import say_json
from rag.cli.parser import main
from rag.indexing.backends import Backend
from tests.support.rag.command import Run

# A terminal's title, a screen that is cleared, another line, and text that runs backwards.
EVIL = "\x1b]0;owned\x07\x1b[2J\nerror: all is lost\r\x9b31m\u2028\u2029\u202egnp.\u2066\x7f"


def is_harmless(output: str) -> bool:
    """Return whether every line of an output is printable and none is the one in `EVIL`."""
    assert "error: all is lost\n" not in output
    return not [one for one in output if one != "\n" and escapes(one)]


def escapes(one: str) -> bool:
    category, direction = unicodedata.category(one), unicodedata.bidirectional(one)
    overrides = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return category in ("Cc", "Zl", "Zp", "Cs") or direction in overrides


def test_all_characters_that_control_a_terminal_or_the_order_of_text_are_escaped() -> None:
    everything = [chr(number) for number in range(sys.maxunicode + 1)]
    assert [one for one in everything if printable(one) != one] == list(filter(escapes, everything))
    assert printable("a\n\x1b\x85\u202eb") == r"a\n\x1b\x85\u202eb"
    for kept in ("Рудий кіт", "猫 🐈", "حليب", r"C:\new", "[red]a[/]"):
        assert printable(kept) == kept


def test_escaped_json_has_the_same_value() -> None:
    value = {EVIL: [EVIL, "кіт", "\ud800"]}
    text = printable_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert is_harmless(text)
    assert "кіт" in text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of two equal pictures with hostile names, of which one is in a manifest."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / f"{EVIL}.png").write_bytes(b"one")
    (folder / "two.png").write_bytes(b"two")
    (folder / f"broken{EVIL}.png").write_bytes(b"broken")
    (folder / f"lost{EVIL}.png").symlink_to("/nowhere")
    lines: list[dict[str, Any]] = [{"path": "two.png", "id": "2", "metadata": {"kind": EVIL}}]
    lines += [{"path": "two.png", EVIL: 1}]
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_no_command_prints_control_characters(run_local: Run, folder: Path) -> None:
    for command in (
        ("index", folder),
        ("index", folder / "m.jsonl"),
        ("index", folder, "--dry-run"),
        ("index", folder, "--failures", f"{EVIL}.jsonl"),
        ("index", EVIL),
        ("search", "a"),
        ("search", "a", "--group-by", "kind"),
        ("search", "a", "--json"),
        ("search", "a", "--image", EVIL),
        ("duplicates", "--threshold", "-1"),
        ("duplicates", "--threshold", "-1", "--json"),
        ("delete", EVIL),
    ):
        _, out, err = run_local(*command)
        assert is_harmless(out + err), command
        assert "owned" in out + err, command


def test_a_table_shows_one_row_for_each_hit(
    run_local: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output._OUT, "_width", 300)  # no cell needs two lines
    monkeypatch.setattr(output._OUT, "_height", 50)
    run_local("index", folder, folder / "m.jsonl")
    lines = run_local("search", "a", "--group-by", "kind")[1].splitlines()
    assert len(lines) == 3 + 1 + 1  # the heading, one group and the frame
    assert printable(EVIL) in lines[3]


def test_errors_of_a_service_and_wrong_arguments_are_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(local: bool) -> Backend:
        raise VisionError(EVIL, code="brand_new")

    assert main(["stats"], opened=failing) == 1
    assert capsys.readouterr().err == f"error: {printable(EVIL)}\n"
    with pytest.raises(SystemExit):
        main(["stats", f"--{EVIL}"])
    assert is_harmless(capsys.readouterr().err)


def test_a_name_that_is_not_utf_8_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"path": os.fsdecode(b"caf\xe9")})
    assert json.loads(capsys.readouterr().out)["path"] == "caf\udce9"
