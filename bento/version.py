"""The version of this project. The packaging reads it from here."""

from pathlib import Path

VERSION = "0.1.0"


def revision() -> str | None:
    """Return the git revision that `make bento` recorded, or None in a checkout."""
    file = Path(__file__).with_name("revision.txt")
    return file.read_text().strip() if file.exists() else None
