"""Search results as text for an agent, in Ukrainian or English."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from bento.contract.errors import InvalidSearch
from bento.contract.search import Hit, Language


def format_image_search_results_for_agent(results: Sequence[Hit], language: Language = "uk") -> str:
    """Put hits into a numbered list: what each picture is, and how relevant in per cent.

    A picture is named by its `title`, else by its file's name, else by its id.
    """
    if language not in ("uk", "en"):
        raise InvalidSearch(f"language {language!r} is not one of uk, en")
    count = len(results)
    if not count:
        return "Зображень не знайдено." if language == "uk" else "No images found."
    if language == "uk":
        head, relevance = f"Знайдено {count} {_uk_images(count)}:", "релевантність"
    else:
        head, relevance = f"Found {count} image{'' if count == 1 else 's'}:", "relevance"
    lines = [
        f"{i}. {_name(hit)} ({relevance}: {round(max(hit.score, 0.0) * 100)}%)"
        for i, hit in enumerate(results, 1)
    ]
    return "\n".join([head, *lines])


def _uk_images(count: int) -> str:
    """Return "зображення" in the form that Ukrainian takes after a number."""
    if count % 10 in (1, 2, 3, 4) and count % 100 not in (11, 12, 13, 14):
        return "зображення"
    return "зображень"


def _name(hit: Hit) -> str:
    return str(hit.payload.get("title") or PurePath(hit.path).name or hit.id)
