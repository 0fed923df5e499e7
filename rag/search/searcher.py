"""Search: from examples to one query vector, from that to hits.

Grouping and diversity are computed here, over what either engine finds, so that both engines
give the same answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import numpy as np

from bento.contract.filters import (
    Filter,
    IsEmpty,
    MatchAny,
    MatchExcept,
    Value,
    both,
    names_of,
    parse_filter,
    tenant,
)
from bento.contract.search import (
    MAX_DEPTH,
    Examples,
    Hit,
    ImageExample,
    SearchRequest,
    SearchResponse,
)
from rag.errors import InvalidSearch
from rag.pictures.index import DEFAULT_DAO_ID, PictureIndex
from rag.search.agent import format_image_search_results_for_agent
from rag.store.interface import Collection, Match, Payload, Vector
from router_client.errors import explain_search_failure

NEGATIVE_WEIGHT: Final = 0.5  # a negative example takes away half of what a positive one gives
CANDIDATES: Final = 500  # that diversity chooses from
_CHUNK: Final = 1000  # matches looked through at a time for groups
_FURTHER: Final = 20  # looks for groups below the `MAX_DEPTH` best, and as many to fill groups


Groups = dict[Value, list[Match]]  # by the value of a payload field, each best first


class Embedder(Protocol):
    """What turns examples into embeddings; `bento.runners.runners.Runners` does."""

    async def embed_text(self, text: str, *, normalize: bool) -> Vector:
        """Return the embedding of a text, float32 (dimension,)."""

    async def embed_image(self, data: bytes, *, normalize: bool) -> Vector:
        """Return the embedding of a picture file's bytes, float32 (dimension,)."""


Fetch = Callable[[ImageExample], Awaitable[bytes]]  # gives what an example has or points to


async def search(
    request: SearchRequest,
    pictures: PictureIndex,
    embedder: Embedder,
    fetch: Fetch,
    *,
    collection: str,
    top_k: int,
    model: str,
) -> SearchResponse:
    """Answer a search; `collection` and `top_k` are what holds when the request names none.

    Raises `RagError` for what cannot be searched, and what `embedder` and `fetch` raise.
    """
    name = request.collection or collection
    wanted = _filter(request)
    limit = _page_size(request, request.top_k or top_k)
    vectors = _Vectors(pictures, embedder, fetch, name, request.dao_id or DEFAULT_DAO_ID)
    query = compose(
        await vectors.of(request, 1.0),
        await vectors.of(request.negative, NEGATIVE_WEIGHT) if request.negative else [],
    )
    held = await asyncio.to_thread(pictures.open, name)
    hits, following = await asyncio.to_thread(_find, held, query, request, limit, wanted)
    return SearchResponse(
        hits=hits,
        count=len(hits),
        next_offset=following,
        model=model,
        formatted_text=format_image_search_results_for_agent(hits, request.language),
    )


def degraded(error: Exception, request: SearchRequest | None = None) -> SearchResponse:
    """Return the answer to a search that could not be made: why, and what to do."""
    language = request.language if request else "uk"
    return SearchResponse(
        success=False,
        error=str(error),
        code=getattr(error, "code", "internal_error"),
        formatted_text=explain_search_failure(error, language),
    )


def compose(
    positive: Sequence[tuple[Vector, float]], negative: Sequence[tuple[Vector, float]]
) -> Vector:
    """Return the query vector, float32 (dimension,) of length 1: weighted examples summed up.

    What is negative is subtracted; only the proportions of the weights count. Raises
    `InvalidSearch` when nothing remains.
    """
    signed = [*positive, *((vector, -weight) for vector, weight in negative)]
    weights = np.array([weight for _, weight in signed], np.float64)
    vectors = np.array([vector for vector, _ in signed], np.float64)
    total = (weights / np.abs(weights).max()) @ vectors
    length = np.linalg.norm(total)
    if length < 1e-6:
        raise InvalidSearch("the positive and the negative examples cancel each other out")
    return np.asarray(total / length, np.float32)


class _Vectors:
    """The vectors of examples: embedded, or those of indexed pictures."""

    def __init__(
        self,
        pictures: PictureIndex,
        embedder: Embedder,
        fetch: Fetch,
        collection: str,
        dao_id: str,
    ) -> None:
        self._pictures = pictures
        self._embedder = embedder
        self._fetch = fetch
        self._collection = collection
        self._dao_id = dao_id

    async def of(self, examples: Examples, weight: float) -> list[tuple[Vector, float]]:
        """Return each example's vector, float32 (dimension,), and its weight."""
        vectors = await asyncio.gather(
            *(self._embedder.embed_text(text, normalize=True) for text in examples.texts),
            *(self._image(image) for image in examples.images),
        )
        return list(zip(vectors, examples.weights or [weight] * len(vectors), strict=True))

    async def _image(self, example: ImageExample) -> Vector:
        if example.id is None:
            return await self._embedder.embed_image(await self._fetch(example), normalize=True)
        record = await asyncio.to_thread(
            partial(
                self._pictures.record, example.id, self._dao_id, self._collection, with_vector=True
            )
        )
        assert record.vector is not None  # it was asked for
        return record.vector


def _filter(request: SearchRequest) -> Filter | None:
    """Return all conditions of a request: its tenant's, its own, and not the examples."""
    wanted = None if request.dao_id is None else tenant(request.dao_id)
    if request.filter is not None:
        wanted = both(wanted, parse_filter(request.filter))
    images = [*request.images, *(request.negative.images if request.negative else [])]
    ids = tuple(dict.fromkeys(image.id for image in images if image.id is not None))
    if ids:
        mine = Filter(
            must=(*tenant(request.dao_id or DEFAULT_DAO_ID).must, MatchAny("image_id", ids))
        )
        wanted = both(wanted, Filter(must_not=(mine,)))
    return wanted


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
    look = _Look(held, query, wanted, request.score_threshold)
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


@dataclass(frozen=True)
class _Look:
    """One query to one collection, asked in pieces."""

    held: Collection
    query: Vector
    wanted: Filter | None
    threshold: float | None

    def __call__(
        self,
        limit: int,
        offset: int = 0,
        *,
        besides: Filter | None = None,
        with_vectors: bool = False,
    ) -> list[Match]:
        return self.held.query(
            self.query,
            limit,
            offset=offset,
            filter=both(self.wanted, besides),
            score_threshold=self.threshold,
            with_vectors=with_vectors,
        )


def group(look: _Look, field: str, count: int) -> tuple[Groups, bool]:
    """Return the first `count` values of a payload field, and whether all matches were seen.

    A picture whose field is a list belongs to the group of each item, one without it to none.
    Below the `MAX_DEPTH` best only pictures with a value that was not found yet are looked at.
    """
    groups: Groups = {}
    seen: set[str] = set()  # a write between two looks may bring a picture again
    known: set[Value] = set()
    besides, start = None, 0
    for _ in range(MAX_DEPTH // _CHUNK + _FURTHER):
        matches = look(_CHUNK, start, besides=besides)
        for match in matches:
            for value in _values(match.payload, field) if match.id not in seen else ():
                if value not in known and (value in groups or len(groups) < count):
                    groups.setdefault(value, []).append(match)
        seen.update(match.id for match in matches)
        if len(matches) < _CHUNK:
            return groups, besides is None
        if len(groups) == count:
            break
        start += _CHUNK
        if start == MAX_DEPTH or (besides is not None and len(groups) > len(known)):
            known, start = set(groups), 0
            besides = _others(field, known)
    return groups, False


def fill(look: _Look, field: str, groups: Groups, size: int) -> None:
    """Give each group its `size` best matches, looking for those of many groups at a time.

    Some may stay short after `_FURTHER` looks, where very many pictures of others are better.
    """
    lacking = [value for value, matches in groups.items() if len(matches) < size]
    for _ in range(_FURTHER):
        if not lacking:
            break
        asked, lacking = lacking[: MAX_DEPTH // size], lacking[MAX_DEPTH // size :]
        limit = max(_CHUNK, size * len(asked))  # so that at least one of them becomes full
        matches = look(limit, besides=Filter(should=_any(field, asked)))
        found: Groups = {value: [] for value in asked}
        for match in matches:
            for value in _values(match.payload, field):
                if value in found:
                    found[value].append(match)
        groups.update({value: max(groups[value], found[value], key=len) for value in asked})
        if len(matches) == limit:
            lacking += [value for value in asked if len(groups[value]) < size]


def _others(field: str, values: Iterable[Value]) -> Filter:
    """Return a filter that lets pictures through whose field has another value than these."""
    other = tuple(MatchExcept(field, kind) for kind in _kinds(values))
    return Filter(must=other, must_not=(IsEmpty(field),))


def _any(field: str, values: Iterable[Value]) -> tuple[MatchAny, ...]:
    return tuple(MatchAny(field, kind) for kind in _kinds(values))


def _kinds(values: Iterable[Value]) -> list[tuple[Value, ...]]:
    """Return the strings among values and the numbers: a condition takes one kind."""
    listed = list(values)
    kinds = [tuple(value for value in listed if isinstance(value, kind)) for kind in (str, int)]
    return [kind for kind in kinds if kind]


def _values(payload: Payload, field: str) -> list[Value]:
    """Return the distinct values of a field that can name a group, `a.b` within objects."""
    value: Any = payload
    for name in names_of(field):
        value = value.get(name) if isinstance(value, dict) else None
    items = value if isinstance(value, list) else [value]
    return list(
        dict.fromkeys(
            x for x in items if isinstance(x, str | int) and x is not True and x is not False
        )
    )


def _hit(match: Match, group: Value | None = None) -> Hit:
    return Hit(
        id=str(match.payload.get("image_id", match.id)),
        score=match.score,
        path=str(match.payload.get("image_path", "")),
        payload=match.payload,
        group=group,
    )


def diverse(candidates: Sequence[Match], diversity: float, count: int) -> list[Match]:
    """Choose matches that are relevant and unlike each other, in the order of choosing.

    Maximal marginal relevance (Carbonell and Goldstein, 1998): each time the one with the
    largest `(1 - diversity) * score - diversity * similarity to what is chosen`.
    """
    if not candidates:
        return []
    vectors = np.stack([match.vector for match in candidates if match.vector is not None])
    scores = np.array([match.score for match in candidates])
    nearest = np.full(len(candidates), -np.inf)  # similarity to what is chosen
    left = np.ones(len(candidates), bool)
    order = [int(np.argmax(scores))]
    while True:
        last = order[-1]
        left[last] = False
        if len(order) == min(count, len(candidates)):
            return [candidates[i] for i in order]
        nearest = np.maximum(nearest, vectors @ vectors[last])
        value = (1 - diversity) * scores - diversity * nearest
        order.append(int(np.argmax(np.where(left, value, -np.inf))))
