"""What is asked of the index and what it answers, as pydantic models.

They are the bodies of the HTTP routes and the arguments of the library alike.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

MAX_TOP_K: Final = 1000
MAX_DEPTH: Final = 10_000  # how far one can page
MAX_EXAMPLES: Final = 20
MAX_SEARCHES: Final = 100

Language = Literal["uk", "en"]
Outcome = Literal["indexed", "updated", "unchanged"]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000)]


CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc


def _nameable(image_id: str) -> str:
    if image_id in (".", ".."):
        raise ValueError(f"{image_id!r} is a step in a path, so that no URL could name it")
    if found := CONTROL.search(image_id):
        raise ValueError(f"it has a control character, {found[0]!r}, so that no URL could name it")
    return image_id


ImageId = Annotated[
    str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_nameable)
]
DaoId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=256),
    Field(description="The tenant that a picture belongs to."),
]
Path = Annotated[str, StringConstraints(max_length=4096)]
CollectionName = Annotated[
    str | None,
    Field(
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="A collection other than IMAGE_SEARCH_COLLECTION.",
    ),
]
Weight = Annotated[float, Field(gt=0, le=100)]

T = TypeVar("T")
Many = Annotated[list[T], Field(fail_fast=True)]  # else an error for each of a million wrong items


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else [value]


class Body(BaseModel):
    """A request: unknown fields are errors, so that a typo is noticed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _no_more_than_there_are(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > len(cls.model_fields):
            allowed = ", ".join(cls.model_fields)
            raise ValueError(f"{len(given):,} fields are too many; allowed are {allowed}")
        return given


class IndexRequest(Body):
    """A picture to index, with what is known about it."""

    id: ImageId = Field(description="Your name for the picture; indexing it again replaces it.")
    image_url: str | None = Field(None, max_length=2048, description="http(s), public addresses.")
    image_base64: str | None = Field(
        None, description="The file's bytes in base64; a data: URI is taken too."
    )
    dao_id: DaoId = "default"
    image_path: Path = Field("", description="Where you keep the picture.")
    duplicates: Many[Path] = Field(
        default_factory=list, max_length=10_000, description="Other places of the same picture."
    )
    metadata: dict[str, Any] = Field(
        default_factory=dict, description="title, category, tags and whatever else you like."
    )
    collection: CollectionName = None
    staged: bool = Field(
        False, description="Into the generation that is being filled beside the published one."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> IndexRequest:
        if (self.image_url is None) == (self.image_base64 is None):
            raise ValueError("give exactly one of image_url and image_base64")
        return self


class IndexResponse(BaseModel):
    id: str
    dao_id: str
    collection: str
    outcome: Outcome = Field(
        description="updated: the same picture with another payload; nothing was embedded."
    )


class UpdateRequest(Body):
    """What replaces what is known of a picture; what is left out stays."""

    paths: Many[Path] | None = Field(
        None, max_length=10_000, description="Where it lies: image_path, then duplicates."
    )
    metadata: dict[str, Any] | None = None


class UpdateResponse(BaseModel):
    id: str
    dao_id: str
    updated: bool = Field(description="False when there is no such picture.")


class DeleteResponse(BaseModel):
    id: str
    dao_id: str
    deleted: bool


class ImageExample(Body):
    """An image to search by, as exactly one of `image_base64`, `image_url` and `id`."""

    image_base64: str | None = Field(None, description="The file's bytes in base64, or a data: URI")
    image_url: str | None = Field(None, max_length=2048, description="http(s), public addresses.")
    id: ImageId | None = Field(None, description="Of an indexed picture; it is not among the hits.")

    @model_validator(mode="after")
    def _exactly_one(self) -> ImageExample:
        if sum(x is not None for x in (self.image_base64, self.image_url, self.id)) != 1:
            raise ValueError("give exactly one of image_base64, image_url and id")
        return self


class Examples(Body):
    """Texts and images, each with a weight."""

    text: Annotated[
        Many[Text] | None,
        BeforeValidator(_listed, json_schema_input_type=Text | list[Text] | None),
    ] = Field(None, examples=["a red circle"])
    image: Annotated[
        Many[ImageExample] | None,
        BeforeValidator(_listed, json_schema_input_type=ImageExample | list[ImageExample] | None),
    ] = None
    weights: Many[Weight] | None = Field(
        None, description="One for each text, then one for each image."
    )

    @property
    def texts(self) -> list[str]:
        return self.text or []

    @property
    def images(self) -> list[ImageExample]:
        return self.image or []

    @model_validator(mode="after")
    def _some_and_as_many_weights(self) -> Examples:
        count = len(self.texts) + len(self.images)
        if not 1 <= count <= MAX_EXAMPLES:
            raise ValueError(f"give a text, an image or both: 1 to {MAX_EXAMPLES} examples")
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(f"weights has {len(self.weights)} numbers for {count} examples")
        return self


class SearchRequest(Examples):
    """A search by texts, images or both."""

    negative: Examples | None = Field(None, description="What the pictures should be unlike.")
    top_k: int | None = Field(None, ge=1, le=MAX_TOP_K)
    offset: int = Field(0, ge=0, le=MAX_DEPTH, description="So many of the best are left out.")
    dao_id: DaoId | None = Field(None, description="Search the pictures of this tenant only.")
    filter: dict[str, Any] | None = Field(
        None,
        description="must, should and must_not on payload fields, in Qdrant's form.",
        examples=[{"must": [{"key": "tags", "match": {"any": ["demo"]}}]}],
    )
    score_threshold: float | None = Field(None, ge=-1, le=1)
    group_by: str | None = Field(
        None,
        pattern=r'^([\w-]+|"[^"\\]*")(\.([\w-]+|"[^"\\]*"))*$',
        description="A payload field, `a.b` within objects; top_k then counts its values.",
    )
    group_size: int = Field(1, ge=1, le=100, description="Hits of each group.")
    diversity: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Maximal marginal relevance: 0 the most relevant, 1 the most different.",
    )
    language: Language = Field("uk", description="Of formatted_text.")
    collection: CollectionName = None


class Hit(BaseModel):
    id: str
    score: float = Field(description="Cosine similarity, best 1.")
    path: str
    payload: dict[str, Any]
    group: str | int | None = Field(None, description="The value of the field grouped by.")


class SearchResponse(BaseModel):
    """Hits, best first; or why there are none (`success` false, `error`, `code`)."""

    success: bool = True
    hits: list[Hit] = []
    count: int = 0
    next_offset: int | None = Field(None, description="Where the next page begins, if any.")
    model: str | None = None
    formatted_text: str = Field("", description="The hits for an agent to say.")
    error: str | None = Field(None, description="What was wrong and what to do.")
    code: str | None = Field(None, description="Stable, snake_case.")


class ManySearchesRequest(Body):
    """Many searches in one call; each is answered for itself."""

    searches: Many[dict[str, Any]] = Field(min_length=1, max_length=MAX_SEARCHES)


class ManySearchesResponse(BaseModel):
    results: list[SearchResponse]


class IndexedImage(BaseModel):
    """A picture as it is held; `payload` has everything, `dao_id` and `image_path` included."""

    id: str
    dao_id: str
    path: str
    payload: dict[str, Any]


class ListResponse(BaseModel):
    images: list[IndexedImage]
    next: str | None = Field(description="Give it as `start` for the next page.")


class StatsResponse(BaseModel):
    collection: str
    points: int
    model: str = Field(description="NAME/PRETRAINED of what is published")
    dimension: int
    generation: str = Field(description="Of what is published.")
    generations: dict[str, int] = Field(description="The points of each generation.")
    serving: str = Field(description="The generation of the model that answers here.")


class PublishResponse(BaseModel):
    collection: str
    generation: str = Field(description="Published now.")
    replaced: str | None = Field(description="Published before; it stays until it is dropped.")


class DropResponse(BaseModel):
    collection: str
    generation: str
    dropped: bool


def describe(error: ValidationError) -> str:
    """Return in one sentence which values of a request are wrong, and why."""
    return "; ".join(
        f"{'.'.join(map(str, d['loc']))}: {d['msg']}".lstrip(": ").replace("Value error, ", "")
        for d in error.errors()
    )
