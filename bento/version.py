"""What this is a version of: kept in one place, read by the packaging too."""

from pathlib import Path

VERSION = "0.1.0"


def revision() -> str | None:
    """Return the git revision that `make bento` wrote down; None in a checkout."""
    file = Path(__file__).with_name("revision.txt")
    return file.read_text().strip() if file.exists() else None
