"""Indexed pictures and collections: requests and answers."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints

from bento.contract.base import Answer, Many, Request
from bento.contract.embedding import ImageSource
from bento.contract.limits import MAX_ID, MAX_PATH, MAX_PLACES, MAX_TENANT

DEFAULT_DAO_ID: Final = "default"  # the tenant of a picture for which none is named
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc

Outcome = Literal["indexed", "updated", "unchanged"]


def _nameable(image_id: str) -> str:
    if image_id in (".", ".."):
        raise ValueError(f"{image_id!r} is a step in a path, so that no URL could name it")
    if found := CONTROL.search(image_id):
        raise ValueError(f"it has a control character, {found[0]!r}, so that no URL could name it")
    return image_id


ImageId = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_ID), AfterValidator(_nameable)
]
DaoId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_TENANT),
    Field(description="The tenant that a picture belongs to."),
]
Place = Annotated[str, StringConstraints(max_length=MAX_PATH)]
CollectionName = Annotated[
    str | None,
    Field(
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="A collection other than IMAGE_SEARCH_COLLECTION.",
    ),
]


class IndexRequest(ImageSource):
    """A picture to index, with its metadata."""

    id: ImageId = Field(description="Your name for the picture; indexing it again replaces it.")
    dao_id: DaoId = DEFAULT_DAO_ID
    image_path: Place = Field("", description="Where you keep the picture.")
    duplicates: Many[Place] = Field(
        default_factory=list, max_length=MAX_PLACES, description="Other paths of the same picture."
    )
    metadata: dict[str, Any] = Field(
        default_factory=dict, description="title, category, tags and whatever else you like."
    )
    collection: CollectionName = None
    staged: bool = Field(False, description="Into the staged version of the collection.")


class IndexResponse(Answer):
    id: str = ""
    dao_id: str = ""
    collection: str = ""
    outcome: Outcome = Field(
        description="updated: the same picture with another payload; nothing was embedded."
    )


class UpdateRequest(Request):
    """New paths or metadata of a picture; a field that is left out stays as it is."""

    paths: Many[Place] | None = Field(
        None, max_length=MAX_PLACES, description="Its paths: image_path, then duplicates."
    )
    metadata: dict[str, Any] | None = None


class UpdateResponse(Answer):
    id: str = ""
    dao_id: str = ""
    updated: bool = Field(description="False when there is no such picture.")


class DeleteResponse(Answer):
    id: str = ""
    dao_id: str = ""
    deleted: bool


class IndexedImage(Answer):
    """A picture as it is stored; `payload` has everything, `dao_id` and `image_path` included."""

    id: str
    dao_id: str = ""
    path: str = ""
    payload: dict[str, Any] = Field({})


class ListResponse(Answer):
    images: list[IndexedImage]
    next: str | None = Field(description="Give it as `start` for the next page.")


class StatsResponse(Answer):
    """What a collection holds: `points` and `generations` count pictures."""

    collection: str
    points: int
    model: str = Field("", description="NAME/PRETRAINED of the published version.")
    dimension: int = 0
    generation: str = Field("", description="The published version.")
    generations: dict[str, int] = Field({}, description="The points of each version.")
    serving: str = Field("", description="The version of the model that answers here.")


class PublishResponse(Answer):
    collection: str = ""
    generation: str = Field(description="The version published now.")
    replaced: str | None = Field(
        None, description="The version published before; it stays until it is dropped."
    )


class DropResponse(Answer):
    collection: str = ""
    generation: str = ""
    dropped: bool
