"""Answer searches, for the service and for `vision-rag --local`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from bento.contract.errors import InvalidSearch, ServiceError, describe
from bento.contract.filters import Value
from bento.contract.images import DEFAULT_DAO_ID
from bento.contract.search import (
    Hit,
    Language,
    ManySearchesRequest,
    ManySearchesResponse,
    SearchRequest,
    SearchResponse,
    degraded,
)
from rag.pictures.index import PictureIndex
from rag.search.agent import format_image_search_results_for_agent
from rag.search.diversity import diverse
from rag.search.groups import Look, fill, group
from rag.search.limits import DEFAULT_LIMITS, Limits
from rag.search.pages import Page
from rag.search.query import Embedder, Fetch, Vectors, filter_of, query_vector
from rag.search.work import Work, on_a_thread
from rag.settings import RagSettings
from rag.store.interface import Match


class Searcher:
    """Searches the pictures of a store.

    `embedder` embeds the examples, `fetch` returns the bytes of an example's file, and `work` runs
    the calls of the store. Answers name `model`.
    """

    def __init__(
        self,
        pictures: PictureIndex,
        embedder: Embedder,
        fetch: Fetch,
        settings: RagSettings,
        model: str,
        work: Work = on_a_thread,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._pictures = pictures
        self._embedder = embedder
        self._fetch = fetch
        self._collection = settings.image_search_collection
        self._top_k = settings.image_search_default_top_k
        self._model = model
        self._work = work
        self._limits = limits

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Answer a search. Raises `RagError`, and the errors of `embedder` and `fetch`."""
        return await self._search(request, self._limits)

    async def _search(self, request: SearchRequest, limits: Limits) -> SearchResponse:
        name = request.collection or self._collection
        wanted = filter_of(request)
        limit = _page_size(request, request.top_k or self._top_k, limits)
        tenant = request.dao_id or DEFAULT_DAO_ID
        vectors = Vectors(self._pictures, self._embedder, self._fetch, self._work, name, tenant)
        query = await query_vector(request, vectors)
        held = await self._work(self._pictures.open, name)
        look = Look(held, query, wanted, request.score_threshold, limits)
        hits, following = await self._work(_find, look, request, limit)
        return SearchResponse(
            hits=hits,
            count=len(hits),
            next_offset=following,
            model=self._model,
            formatted_text=format_image_search_results_for_agent(hits, request.language),
        )

    async def search_many(self, request: ManySearchesRequest) -> ManySearchesResponse:
        """Run all searches concurrently. A search that fails is answered with its error."""
        page_bytes = self._limits.page_bytes // len(request.searches)
        limits = replace(self._limits, page_bytes=page_bytes)
        results = await asyncio.gather(
            *(self._one_of_many(body, limits) for body in request.searches)
        )
        return ManySearchesResponse(results=list(results))

    async def _one_of_many(self, body: dict[str, Any], limits: Limits) -> SearchResponse:
        try:
            request = SearchRequest.model_validate(body)
        except ValidationError as error:
            language = body.get("language")
            wanted: Language = language if language in ("uk", "en") else "uk"
            return degraded(InvalidSearch(describe(error)), wanted)
        try:
            return await self._search(request, limits)
        except ServiceError as error:
            return degraded(error, request.language)


def _page_size(request: SearchRequest, top_k: int, limits: Limits) -> int:
    """Return the largest number of hits for the page: `top_k`, or fewer at the end of paging."""
    if request.diversity is not None and request.group_by is not None:
        raise InvalidSearch("group_by and diversity cannot be combined: remove one of them")
    depth = limits.depth if request.diversity is None else limits.candidates
    if request.offset >= depth:
        raise InvalidSearch(
            f"offset is {request.offset}; a search"
            + (" with diversity" if request.diversity is not None else "")
            + f" reaches only the {depth:,} best pictures, so offset must be below {depth:,}"
        )
    return min(top_k, depth - request.offset)


def _find(look: Look, request: SearchRequest, top_k: int) -> tuple[list[Hit], int | None]:
    """Return the hits of one page, and the offset of the next page, if any."""
    if request.group_by is not None:
        return _find_groups(look, request, request.group_by, top_k)
    start, depth, page = request.offset, look.limits.depth, Page(look)
    end = start + top_k
    if request.diversity is None:
        page.best(min(top_k + 1, depth - start), start)
    else:
        candidates = look(look.limits.candidates, with_vectors=True, fields=[])
        page.complete(diverse(candidates, request.diversity, end + 1)[start:])
    hits = [_hit(match) for match in page.matches[:top_k]]
    if page.is_full:
        return hits, start + len(hits)
    return hits, end if len(page.matches) > top_k else None


def _find_groups(
    look: Look, request: SearchRequest, field: str, top_k: int
) -> tuple[list[Hit], int | None]:
    start, end = request.offset, request.offset + top_k
    groups, whole = group(look, field, min(end + 1, look.limits.depth))
    wanted = dict(list(groups.items())[start:end])
    if not whole:
        fill(look, field, wanted, request.group_size)
    found = [(v, match) for v, ms in wanted.items() for match in ms[: request.group_size]]
    page = Page(look)
    done = page.complete([match for _, match in found])
    complete = {match.id: match for match in page.matches}
    following = end if len(groups) > end else None
    if page.is_full:  # the page ends before the group that does not fit, unless it is the first
        last = list(wanted).index(found[done][0])
        next_group = start + max(1, last)
        following = next_group if next_group < len(groups) else None
        if last:
            found = [one for one in found[:done] if one[0] != found[done][0]]
    return [_hit(complete[m.id], value) for value, m in found if m.id in complete], following


def _hit(match: Match, group: Value | None = None) -> Hit:
    return Hit(
        id=str(match.payload.get("image_id", match.id)),
        score=match.score,
        path=str(match.payload.get("image_path", "")),
        payload=match.payload,
        group=group,
    )
