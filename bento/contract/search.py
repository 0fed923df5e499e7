"""Search: requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from bento.contract.base import Answer, Many, Request, Text, listed, printable
from bento.contract.embedding import Code, File, ImageBase64, ImageUrl, base64_of
from bento.contract.errors import VisionError
from bento.contract.filters import BoundedFilter
from bento.contract.images import CollectionName, DaoId, ImageId
from bento.contract.limits import MAX_DEPTH, MAX_EXAMPLES, MAX_SEARCHES, MAX_TOP_K

Language = Literal["uk", "en"]
Weight = Annotated[float, Field(gt=0, le=100)]


class ImageExample(Request):
    """An image to search by: exactly one of `image_base64`, `image_url` and `id`."""

    image_base64: ImageBase64 = None
    image_url: ImageUrl = None
    id: ImageId | None = Field(
        None, description="The id of an indexed picture, which the hits then exclude."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> ImageExample:
        if sum(x is not None for x in (self.image_base64, self.image_url, self.id)) != 1:
            raise ValueError("give exactly one of image_base64, image_url and id")
        return self


def image_example(data: bytes) -> ImageExample:
    """Return an example from the bytes of a picture file."""
    return ImageExample(image_base64=base64_of(data))


class Examples(Request):
    """Texts and images to search by, each with a weight."""

    text: Annotated[
        Many[Text] | None,
        BeforeValidator(listed, json_schema_input_type=Text | list[Text] | None),
    ] = Field(None, description="A text, or a list of texts.", examples=["a red circle"])
    image: Annotated[
        Many[ImageExample] | None,
        BeforeValidator(listed, json_schema_input_type=ImageExample | list[ImageExample] | None),
    ] = Field(None, description="An image (`image_base64`, `image_url` or `id`), or a list.")
    weights: Many[Weight] | None = Field(
        None, description="A weight above 0 for each text, then for each image."
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
            raise ValueError(
                f"give a text, an image or both: 1 to {MAX_EXAMPLES} examples, not {count}"
            )
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(
                f"weights has {len(self.weights)} numbers for {count} examples; "
                "give one for each text, then one for each image"
            )
        return self


class SearchRequest(Examples):
    """A search by texts, images or both."""

    negative: Examples | None = Field(
        None, description="Texts and images that the hits should not resemble."
    )
    top_k: int | None = Field(
        None,
        ge=1,
        le=MAX_TOP_K,
        description="The number of hits; default: IMAGE_SEARCH_DEFAULT_TOP_K.",
    )
    offset: int = Field(0, ge=0, le=MAX_DEPTH, description="Skip this many of the best hits.")
    dao_id: DaoId | None = Field(None, description="Search only the pictures of this tenant.")
    filter: BoundedFilter | None = Field(
        None,
        description="Conditions on payload fields, in Qdrant's form.",
        examples=[{"must": [{"key": "tags", "match": {"any": ["demo"]}}]}],
    )
    score_threshold: float | None = Field(
        None, ge=-1, le=1, description="The lowest cosine similarity of a hit."
    )
    group_by: str | None = Field(
        None,
        pattern=r'^([\w-]+|"[^"\\]*")(\.([\w-]+|"[^"\\]*"))*$',
        description="Group hits by a payload field, such as `tags` or `camera.lens`. `top_k` then "
        "counts groups.",
    )
    group_size: int = Field(1, ge=1, le=100, description="The number of hits in each group.")
    diversity: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Maximal marginal relevance, from 0 (most relevant) to 1 (most diverse).",
    )
    language: Language = Field("uk", description="The language of `formatted_text`.")
    collection: CollectionName = None


class SearchUploadForm(Request):
    """A multipart form with an image to search by."""

    file: File = Field(description="The image file.")
    search: str = Field("{}", description="All other fields of `POST /search`, as a JSON object.")


class Hit(Answer):
    """A search hit."""

    id: str
    score: float = Field(description="Cosine similarity, -1 to 1; 1 is best.")
    path: str = ""
    payload: dict[str, Any] = Field({})
    group: str | int | None = Field(None, description="The value of the `group_by` field.")


class SearchResponse(Answer):
    """Hits, best first. If the search failed, `success` is false and `error` says why."""

    success: bool = True
    hits: list[Hit]
    count: int = 0
    next_offset: int | None = Field(
        None, description="`offset` of the next page; null on the last page."
    )
    model: str | None = None
    formatted_text: str = Field(description="The hits as text for a chat agent.")
    error: str | None = Field(
        None, description="What was wrong and what to do; null if the search succeeded."
    )
    code: Code | None = None


class ManySearchesRequest(Request):
    """Several searches in one call."""

    searches: Many[dict[str, Any]] = Field(
        min_length=1,
        max_length=MAX_SEARCHES,
        description=f"1 to {MAX_SEARCHES} searches, each a body of `POST /search`.",
    )


class ManySearchesResponse(Answer):
    """One answer for each search, in the order of the request."""

    results: list[SearchResponse]


def degraded(error: VisionError, language: Language = "uk") -> SearchResponse:
    """Return the answer to a failed search, with the error in it."""
    return SearchResponse(
        success=False,
        hits=[],
        error=str(error),
        code=error.code,
        formatted_text=explain_search_failure(str(error), language),
    )


def explain_search_failure(problem: str, language: str = "uk") -> str:
    """Return a sentence for the user of an agent: the search failed, and why."""
    failed = "Image search failed" if language == "en" else "Пошук зображень не вдався"
    return f"{failed}: {printable(problem)}"
