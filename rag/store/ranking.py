"""The order of matches with equal scores, which the engines leave open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from bento.contract.limits import MAX_DEPTH
from rag.store.interface import Match, Record

# An engine's cosine has the rounding error of float32, and an engine drops points exactly at the
# threshold. So the engine gets a threshold that is lower by this amount.
ROUNDING: Final = 1e-6

Ask = Callable[[int, int, bool], list[Match]]  # limit, offset, whether with payloads and vectors
Fetch = Callable[[Sequence[str]], dict[str, Record]]


def lowered(score_threshold: float | None) -> float | None:
    """Return the threshold to give an engine, so that it finds points exactly at the given one."""
    return None if score_threshold is None else score_threshold - ROUNDING


def selected(fields: Sequence[str] | None) -> bool | list[str]:
    """Return which payload fields to ask an engine for: all, none or some."""
    return True if fields is None else list(fields) or False


def ranked(ask: Ask, fetch: Fetch, top_k: int, offset: int) -> list[Match]:
    """Return a page of an engine's matches, best first, equal scores in the order of ids.

    An engine may choose differently among equal scores for each limit and offset. So if a page
    starts or ends between equal scores, `ask` lists all matches down to the next lower score,
    without payloads. Then `fetch` gets the page's payloads; points deleted meanwhile are left out.
    Pages end after the `MAX_DEPTH` best matches. If the scores there are equal, the engine chooses.
    """
    before = min(offset, 1)
    found = _best_first(ask(before + top_k + 1, offset - before, True))
    if not _tied(found, before) and not _tied(found, before + top_k):
        return found[before : before + top_k]
    limit = end = offset + top_k
    while True:
        limit = min(10 * limit, MAX_DEPTH)
        found = _best_first(ask(limit, 0, False))
        if limit == MAX_DEPTH or len(found) < limit or found[-1].score < found[end - 1].score:
            break
    page = found[offset:end]
    records = fetch([match.id for match in page])
    return [
        Match(match.id, match.score, records[match.id].payload, records[match.id].vector)
        for match in page
        if match.id in records
    ]


def _best_first(matches: list[Match]) -> list[Match]:
    return sorted(matches, key=lambda match: (-match.score, match.id))


def _tied(matches: Sequence[Match], end: int) -> bool:
    """Return whether the matches before and after `end` have equal scores."""
    return 0 < end < len(matches) and matches[end - 1].score == matches[end].score
