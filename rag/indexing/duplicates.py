"""Find near duplicates: groups of pictures with similar vectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from bento.contract.images import IndexedImage
from bento.contract.search import ImageExample, SearchRequest
from rag.indexing.backends import Backend
from rag.indexing.bulk import Progress
from rag.indexing.plan import paths_of
from rag.indexing.retrying import patiently

_NEIGHBOURS = 100  # hits for one picture; larger groups form through several pictures


@dataclass(frozen=True)
class Alike:
    """Pictures that are similar, directly or through others; `score` is of the closest two."""

    score: float
    images: tuple[IndexedImage, ...]

    def as_json(self) -> dict[str, Any]:
        pictures = [{"id": image.id, "paths": list(paths_of(image))} for image in self.images]
        return {"score": self.score, "pictures": pictures}


def near_duplicates(
    backend: Backend, collection: str, dao_id: str, threshold: float, progress: Progress
) -> list[Alike]:
    """Return groups of a tenant's pictures, the group with the highest score first.

    Two pictures are in one group if their cosine similarity is at least `threshold`. A picture
    with several paths and no similar picture is a group with score 1.
    """
    images = {image.id: image for image in backend.images(collection, dao_id=dao_id)}
    group_of = {image_id: {image_id} for image_id in images}
    score_of: dict[int, float] = {}  # by `id(group)`: the score of its closest two pictures
    for done, image_id in enumerate(images, 1):
        request = SearchRequest(
            image=[ImageExample(id=image_id)],
            dao_id=dao_id,
            score_threshold=threshold,
            top_k=_NEIGHBOURS,
            collection=collection,
        )
        for hit in patiently(partial(backend.search, request)).hits:
            ours, theirs = group_of[image_id], group_of.get(hit.id)
            if theirs is None:
                continue  # indexed after the listing
            score = max(hit.score, score_of.get(id(ours), -1.0), score_of.get(id(theirs), -1.0))
            if ours is not theirs:
                ours |= theirs
                group_of.update(dict.fromkeys(theirs, ours))
            score_of[id(ours)] = score
        progress("comparing", done, len(images), "")
    groups = {id(group): group for group in group_of.values()}
    found = []
    for key, group in groups.items():
        held = tuple(images[image_id] for image_id in sorted(group))
        if len(held) > 1:
            found.append(Alike(score_of[key], held))
        elif len(paths_of(held[0])) > 1:
            found.append(Alike(1.0, held))
    return sorted(found, key=lambda alike: -alike.score)
