"""Keys, limits, an allowed site and public paths for tests of access control."""

from __future__ import annotations

KEYS = ("first-k3y!", "second/k3y=")
LIMIT = 2_000_000
PAGE_OF_OURS = "https://pictures.example"
PAGES = {"/", "/ui", "/ui/app.js", "/docs", "/docs/start.js", "/openapi.json"}
PAGES |= {"/static_content/swagger-ui.css"}
BENTOML = {"/schema.json", "/docs.json"}


def key(value: str = KEYS[0]) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}
