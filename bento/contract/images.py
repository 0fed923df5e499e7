"""Indexed pictures and collections: requests and answers."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints

from bento.contract.base import Answer, Many, Request
from bento.contract.embedding import ImageSource
from bento.contract.limits import MAX_ID, MAX_METADATA_BYTES, MAX_PATH, MAX_PLACES, MAX_TENANT

DEFAULT_DAO_ID: Final = "default"  # tenant of a picture that names none
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc

Outcome = Literal["indexed", "updated", "unchanged"]


def _nameable(image_id: str) -> str:
    if image_id in (".", ".."):
        raise ValueError(f"{image_id!r} is not allowed: URLs treat it as a relative path")
    if found := CONTROL.search(image_id):
        raise ValueError(f"the control character {found[0]!r} is not allowed")
    return image_id


ImageId = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_ID), AfterValidator(_nameable)
]
DaoId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_TENANT),
    Field(description="The tenant that owns the picture."),
]
Place = Annotated[str, StringConstraints(max_length=MAX_PATH)]
CollectionName = Annotated[
    str | None,
    Field(
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="The collection; default: IMAGE_SEARCH_COLLECTION.",
    ),
]


def _small(metadata: dict[str, Any]) -> dict[str, Any]:
    count = len(json.dumps(metadata, ensure_ascii=False).encode(errors="replace"))
    if count > MAX_METADATA_BYTES:
        raise ValueError(
            f"the metadata has {count:,} bytes as JSON; at most {MAX_METADATA_BYTES:,} are allowed"
        )
    return metadata


Metadata = Annotated[dict[str, Any], AfterValidator(_small)]


class IndexRequest(ImageSource):
    """A picture to index, with its metadata."""

    id: ImageId = Field(description="Your id for the picture. Indexing the id again replaces it.")
    dao_id: DaoId = DEFAULT_DAO_ID
    image_path: Place = Field("", description="The path where you store the picture.")
    duplicates: Many[Place] = Field(
        default_factory=list, max_length=MAX_PLACES, description="Other paths of the same picture."
    )
    metadata: Metadata = Field(
        default_factory=dict,
        description="Any JSON object of at most 64 KB, such as title, category and tags.",
    )
    collection: CollectionName = None
    staged: bool = Field(False, description="Whether to index into the staged version.")


class IndexResponse(Answer):
    """The outcome of indexing a picture."""

    id: str = ""
    dao_id: str = ""
    collection: str = ""
    outcome: Outcome = Field(
        description="`indexed`, `updated` (only the payload changed, so the picture was not "
        "embedded again) or `unchanged`."
    )


class UpdateRequest(Request):
    """New paths or metadata of a picture. An omitted field stays unchanged."""

    paths: Many[Place] | None = Field(
        None, max_length=MAX_PLACES, description="All paths: `image_path` first, then `duplicates`."
    )
    metadata: Metadata | None = Field(None, description="Replaces all metadata.")


class UpdateResponse(Answer):
    """Whether the picture was updated."""

    id: str = ""
    dao_id: str = ""
    updated: bool = Field(description="false if the index has no such picture.")


class DeleteResponse(Answer):
    """Whether the picture was deleted."""

    id: str = ""
    dao_id: str = ""
    deleted: bool = Field(description="false if the index has no such picture.")


class IndexedImage(Answer):
    """A stored picture. `payload` includes `dao_id` and `image_path`."""

    id: str
    dao_id: str = ""
    path: str = ""
    payload: dict[str, Any] = Field({})


class ListResponse(Answer):
    """One page of a collection's pictures."""

    images: list[IndexedImage]
    next: str | None = Field(description="`start` of the next page; null on the last page.")


class StatsResponse(Answer):
    """The versions of a collection, and how many pictures they hold."""

    collection: str
    points: int = Field(description="Pictures in the published version.")
    model: str = Field("", description="NAME/PRETRAINED of the published version's model.")
    dimension: int = 0
    generation: str = Field("", description="The published version.")
    generations: dict[str, int] = Field({}, description="Pictures in each version.")
    serving: str = Field("", description="The version for this service's model.")


class PublishResponse(Answer):
    """The published version, and the version that it replaced."""

    collection: str = ""
    generation: str = Field(description="The published version.")
    replaced: str | None = Field(
        None, description="The version published before, if any; it stays until you delete it."
    )


class DropResponse(Answer):
    """Whether the version was deleted."""

    collection: str = ""
    generation: str = ""
    dropped: bool
