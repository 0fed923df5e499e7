"""Searching: requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from bento.contract.base import Answer, Many, Request, Text, listed
from bento.contract.embedding import File, base64_of
from bento.contract.errors import VisionError
from bento.contract.filters import BoundedFilter
from bento.contract.images import CollectionName, DaoId, ImageId
from bento.contract.limits import MAX_DEPTH, MAX_EXAMPLES, MAX_SEARCHES, MAX_TOP_K, MAX_URL

Language = Literal["uk", "en"]
Weight = Annotated[float, Field(gt=0, le=100)]


class ImageExample(Request):
    """An image to search by, as exactly one of `image_base64`, `image_url` and `id`."""

    image_base64: str | None = Field(None, description="The file's bytes in base64, or a data: URI")
    image_url: str | None = Field(
        None, max_length=MAX_URL, description="http(s), public addresses."
    )
    id: ImageId | None = Field(None, description="Of an indexed picture; it is not among the hits.")

    @model_validator(mode="after")
    def _exactly_one(self) -> ImageExample:
        if sum(x is not None for x in (self.image_base64, self.image_url, self.id)) != 1:
            raise ValueError("give exactly one of image_base64, image_url and id")
        return self


def image_example(data: bytes) -> ImageExample:
    """Return a picture file's bytes as an example to search by."""
    return ImageExample(image_base64=base64_of(data))


class Examples(Request):
    """Texts and images, each with a weight."""

    text: Annotated[
        Many[Text] | None,
        BeforeValidator(listed, json_schema_input_type=Text | list[Text] | None),
    ] = Field(None, examples=["a red circle"])
    image: Annotated[
        Many[ImageExample] | None,
        BeforeValidator(listed, json_schema_input_type=ImageExample | list[ImageExample] | None),
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
    offset: int = Field(0, ge=0, le=MAX_DEPTH, description="Skip this many of the best hits.")
    dao_id: DaoId | None = Field(None, description="Search the pictures of this tenant only.")
    filter: BoundedFilter | None = Field(
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


class SearchUploadForm(Request):
    """A multipart form with a picture to search by."""

    file: File
    search: str = Field("{}", description="The rest of the search as JSON, as POST /search takes.")


class Hit(Answer):
    """A picture that a search found: `score` is the cosine similarity, -1 to 1."""

    id: str
    score: float = Field(description="Cosine similarity, best 1.")
    path: str = ""
    payload: dict[str, Any] = Field({})
    group: str | int | None = Field(None, description="The value of the field grouped by.")


class SearchResponse(Answer):
    """Hits, best first; or why there are none (`success` false, `error`, `code`)."""

    success: bool = True
    hits: list[Hit]
    count: int = 0
    next_offset: int | None = Field(None, description="Where the next page begins, if any.")
    model: str | None = None
    formatted_text: str = Field(description="The hits for an agent to say.")
    error: str | None = Field(None, description="What was wrong and what to do.")
    code: str | None = Field(None, description="Stable, snake_case.")


class ManySearchesRequest(Request):
    """Many searches in one call; each is answered for itself."""

    searches: Many[dict[str, Any]] = Field(min_length=1, max_length=MAX_SEARCHES)


class ManySearchesResponse(Answer):
    results: list[SearchResponse]


def degraded(error: VisionError, language: Language = "uk") -> SearchResponse:
    """Return the answer to a search that could not be made: why, and what to do."""
    return SearchResponse(
        success=False,
        hits=[],
        error=str(error),
        code=error.code,
        formatted_text=explain_search_failure(str(error), language),
    )


def explain_search_failure(problem: str, language: str = "uk") -> str:
    """Tell a user that pictures could not be searched, and why."""
    if language == "en":
        return f"Image search failed: {problem}"
    return f"Пошук зображень не вдався: {problem}"
