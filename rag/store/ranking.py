"""The order of matches, which engines leave open where scores are equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from bento.contract.limits import MAX_DEPTH
from rag.store.interface import Match, Record

# What an engine computes of a cosine is off by the rounding of float32, and what just meets its
# threshold it leaves out: so the one that it is given is lower by this.
ROUNDING: Final = 1e-6

Ask = Callable[[int, int, bool], list[Match]]  # limit, offset, whether with payloads and vectors
Fetch = Callable[[Sequence[str]], dict[str, Record]]


def lowered(score_threshold: float | None) -> float | None:
    """Return the threshold for an engine, so that what just meets the one given is found."""
    return None if score_threshold is None else score_threshold - ROUNDING


def ranked(ask: Ask, fetch: Fetch, top_k: int, offset: int) -> list[Match]:
    """Return a page of an engine's matches by falling score, equal ones in the order of ids.

    An engine chooses among equal scores anew for each limit and offset. So where those at an end
    of the page are equal, `ask` gives all down to the next lower score, without payloads, which
    `fetch` then gives for the page: what is deleted between the two is left out. Pages are those
    of the `MAX_DEPTH` best; which of the last equal ones are among these the engine chooses.
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
    """Return whether the match before `end` and the one after it have one score."""
    return 0 < end < len(matches) and matches[end - 1].score == matches[end].score
