"""Phrases that an English engineer would not write."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.paths import ROOT

BANNED = (
    "to be had", "there it is", "else who", "of one that", "that of which", "lone client",
    "who is alone", "for who", "what is found", "what is known of", "is away",
)  # fmt: skip
PATTERN = re.compile(rf"\b({'|'.join(BANNED)})\b".replace(" ", r"\s+(?:[#*/]+\s+)?"), re.I)


def test_no_text_has_a_banned_phrase() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found, read = [], 0
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:  # a picture or a model
            continue
        read += 1
        for match in PATTERN.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{name}:{line}: {match[0]}")
    assert read > 300
    assert found == []
