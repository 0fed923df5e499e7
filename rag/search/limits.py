"""How far a search looks into a collection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bento.contract.limits import MAX_DEPTH, MAX_PAGE_BYTES


@dataclass(frozen=True)
class Limits:
    """The limits of one search."""

    depth: int = MAX_DEPTH  # best matches that paging can reach
    candidates: int = 500  # best matches that a diverse search chooses from
    chunk: int = 1000  # matches that a grouped search fetches at a time
    page_bytes: int = MAX_PAGE_BYTES  # of the payloads of a page, which has at least one hit
    further: int = 20  # chunks beyond `depth` to find groups; also queries to fill groups


DEFAULT_LIMITS: Final = Limits()
