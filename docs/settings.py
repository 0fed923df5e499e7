"""Print docs/settings.md from the settings classes: `python docs/settings.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

sys.path.insert(0, str(Path(__file__).parents[1]))  # for this repository's packages

from bento.settings import Settings
from rag.settings import RagSettings
from router_client.client.settings import ClientSettings

TABLES: Final[dict[str, type[BaseSettings]]] = {
    "Service": Settings,
    "Image search": RagSettings,
    "Clients": ClientSettings,
}
INTRODUCTION: Final = """\
# Settings

Environment variables configure the service, image search and the clients.

You can also set them in a file named `.env` in the working directory;
[.env.example](../.env.example) is a template. The environment takes precedence over the file. An
empty variable counts as unset. `MODEL_NAME`, `MODEL_PRETRAINED` and `DEVICE` may have the prefix
`VISION_`.

A client, the router or `vision-rag` sends a key only to an address from the same source: set
`VISION_ENCODER_URL` and `API_KEY` both in the environment or both in `.env`, and for
`vision-rag --local` also `QDRANT_HOST` and `QDRANT_API_KEY`. Otherwise the `.env` file of a folder
that you got from a stranger could redirect your key. The default address and an address in your
program go with every key. Image search and clients do not replace `${NAME}` in the file.

This page is generated: `make docs`."""


def shown(default: Any) -> str:
    """Return a default as `.env` would contain it; empty if there is none."""
    if default in (None, ""):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def row(name: str, field: FieldInfo) -> str:
    """Return a setting's row of the table. Raises `SystemExit` if it has no description."""
    if not field.description:
        raise SystemExit(f"the setting {name} has no description")
    meaning = field.description.replace("|", "\\|")
    return f"| `{name.upper()}` | {shown(field.default)} | {meaning} |"


def page() -> str:
    """Return the text of the page."""
    lines = [INTRODUCTION]
    for title, settings in TABLES.items():
        lines += ["", f"## {title}", "", "| variable | default | meaning |", "|---|---|---|"]
        lines += [row(name, field) for name, field in settings.model_fields.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
