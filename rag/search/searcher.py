"""Answering searches: the same for the service and for `vision-rag --local`."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import ValidationError

from bento.contract.errors import InvalidSearch, ServiceError, describe
from bento.contract.filters import Filter, Value
from bento.contract.images import DEFAULT_DAO_ID
from bento.contract.limits import MAX_DEPTH
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
from rag.search.diversity import CANDIDATES, diverse
from rag.search.groups import Look, fill, group
from rag.search.query import Embedder, Fetch, Vectors, filter_of, query_vector
from rag.settings import RagSettings
from rag.store.interface import Collection, Match, Vector


class Searcher:
    """Searches the pictures of a store.

    `embedder` embeds the examples, `fetch` returns the bytes that an example has or points to, and
    `model` is named in the answers.
    """

    def __init__(
        self,
        pictures: PictureIndex,
        embedder: Embedder,
        fetch: Fetch,
        settings: RagSettings,
        model: str,
    ) -> None:
        self._pictures = pictures
        self._embedder = embedder
        self._fetch = fetch
        self._collection = settings.image_search_collection
        self._top_k = settings.image_search_default_top_k
        self._model = model

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Answer a search. Raises `RagError`, and what `embedder` and `fetch` raise."""
        name = request.collection or self._collection
        wanted = filter_of(request)
        limit = _page_size(request, request.top_k or self._top_k)
        tenant = request.dao_id or DEFAULT_DAO_ID
        vectors = Vectors(self._pictures, self._embedder, self._fetch, name, tenant)
        query = await query_vector(request, vectors)
        held = await asyncio.to_thread(self._pictures.open, name)
        hits, following = await asyncio.to_thread(_find, held, query, request, limit, wanted)
        return SearchResponse(
            hits=hits,
            count=len(hits),
            next_offset=following,
            model=self._model,
            formatted_text=format_image_search_results_for_agent(hits, request.language),
        )

    async def search_many(self, request: ManySearchesRequest) -> ManySearchesResponse:
        """Answer all searches at once; what is wrong with one is its own answer."""
        results = await asyncio.gather(*(self._one_of_many(body) for body in request.searches))
        return ManySearchesResponse(results=list(results))

    async def _one_of_many(self, body: dict[str, Any]) -> SearchResponse:
        try:
            request = SearchRequest.model_validate(body)
        except ValidationError as error:
            language = body.get("language")
            wanted: Language = language if language in ("uk", "en") else "uk"
            return degraded(InvalidSearch(describe(error)), wanted)
        try:
            return await self.search(request)
        except ServiceError as error:
            return degraded(error, request.language)


def _page_size(request: SearchRequest, top_k: int) -> int:
    """Return how many hits the page has at most: fewer than `top_k` where paging ends."""
    if request.diversity is not None and request.group_by is not None:
        raise InvalidSearch("group_by and diversity cannot be combined: leave one of them out")
    depth = MAX_DEPTH if request.diversity is None else CANDIDATES
    if request.offset >= depth:
        raise InvalidSearch(
            f"offset is {request.offset}; one can page through the {depth} best"
            + (" with diversity" if request.diversity is not None else "")
        )
    return min(top_k, depth - request.offset)


def _find(
    held: Collection, query: Vector, request: SearchRequest, top_k: int, wanted: Filter | None
) -> tuple[list[Hit], int | None]:
    """Return the hits of one page, and the offset of the next one if there is one."""
    start, end = request.offset, request.offset + top_k
    look = Look(held, query, wanted, request.score_threshold)
    if request.group_by is not None:
        groups, whole = group(look, request.group_by, min(end + 1, MAX_DEPTH))
        page = dict(list(groups.items())[start:end])
        if not whole:
            fill(look, request.group_by, page, request.group_size)
        hits = [_hit(m, value) for value, ms in page.items() for m in ms[: request.group_size]]
        return hits, end if len(groups) > end else None
    if request.diversity is not None:
        matches = diverse(look(CANDIDATES, with_vectors=True), request.diversity, end + 1)[start:]
    else:
        matches = look(min(top_k + 1, MAX_DEPTH - start), start)
    return [_hit(match) for match in matches[:top_k]], end if len(matches) > top_k else None


def _hit(match: Match, group: Value | None = None) -> Hit:
    return Hit(
        id=str(match.payload.get("image_id", match.id)),
        score=match.score,
        path=str(match.payload.get("image_path", "")),
        payload=match.payload,
        group=group,
    )
