"""Fetch the payloads of a page in steps, until the page has as many bytes as it may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rag.pictures.sizes import PageSize
from rag.search.groups import Look
from rag.store.interface import Match


class Page:
    """The matches of a page, up to `Limits.page_bytes`, but at least one.

    `is_full` says whether further matches were left out for their size.
    """

    def __init__(self, look: Look) -> None:
        self.matches: list[Match] = []
        self.is_full = False
        self._look = look
        self._size = PageSize(look.limits.page_bytes)

    def best(self, count: int, offset: int) -> None:
        """Add the best matches after the first `offset`."""
        seen: set[str] = set()  # a write between two queries may return a picture again
        found = 0
        while found < count and not self.is_full:
            step = self._size.step(count - found)
            matches = self._look(step, offset + found)
            for match in matches:
                if match.id not in seen:
                    self._add(match)
            seen.update(match.id for match in matches)
            found += len(matches)
            if len(matches) < step:
                break

    def complete(self, matches: Sequence[Match]) -> int:
        """Add matches that lack their payloads, and return how many of them were looked at.

        Matches that were deleted meanwhile are left out.
        """
        done = 0
        while done < len(matches):
            step = matches[done : done + self._size.step(len(matches))]
            records = self._look.held.retrieve(list({match.id: None for match in step}))
            for match in step:
                if match.id in records:
                    self._add(replace(match, payload=records[match.id].payload))
                if self.is_full:
                    return done
                done += 1
        return done

    def _add(self, match: Match) -> None:
        if self.is_full or not self._size.fits(match.payload):
            self.is_full = True
        else:
            self.matches.append(match)
