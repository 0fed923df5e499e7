"""Format search results as text for an agent, in Ukrainian or English."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from bento.contract.base import printable
from bento.contract.errors import InvalidSearch
from bento.contract.search import Hit, Language


def format_image_search_results_for_agent(results: Sequence[Hit], language: Language = "uk") -> str:
    """Format hits as a numbered list with the name and the relevance (0 to 100%) of each picture.

    The name is the picture's `title`, else its file's name, else its id. Raises `InvalidSearch` for
    another language.
    """
    if language not in ("uk", "en"):
        raise InvalidSearch(f"language is {language!r}; allowed: uk, en")
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
    """Return the plural form of "зображення" for a number."""
    if count % 10 in (1, 2, 3, 4) and count % 100 not in (11, 12, 13, 14):
        return "зображення"
    return "зображень"


def _name(hit: Hit) -> str:
    # one line: a name must not look like another hit or an instruction
    return printable(str(hit.payload.get("title") or PurePath(hit.path).name or hit.id))
