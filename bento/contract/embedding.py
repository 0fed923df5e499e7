"""The bodies of the HTTP API, as pydantic models."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from bento.contract.errors import InvalidInput

Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000),
    Field(description="Not empty. What lies beyond the model's context is cut off."),
]
Normalize = Annotated[
    bool | None,
    Field(description="L2-normalise the embedding; without it, as the service is set."),
]

T = TypeVar("T")
Many = Annotated[list[T], Field(fail_fast=True)]  # else an error for each of a million wrong items


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


class TextRequest(Body):
    text: Text = Field(examples=["a red circle to the left of a blue square"])
    normalize: Normalize = None


class ImageSource(Body):
    """An image, as exactly one of `image_url` and `image_base64`."""

    image_url: str | None = Field(None, max_length=2048, description="http(s), public addresses.")
    image_base64: str | None = Field(
        None, description="The file's bytes in base64; a data: URI is taken too."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> ImageSource:
        if (self.image_url is None) == (self.image_base64 is None):
            raise ValueError("give exactly one of image_url and image_base64")
        return self


class ImageGiven(Protocol):
    """What has an image, as one of two."""

    image_url: str | None
    image_base64: str | None


class ImageRequest(ImageSource):
    normalize: Normalize = None


class TextsRequest(Body):
    texts: Many[Text] = Field(min_length=1, examples=[["a red circle", "a blue square"]])
    normalize: Normalize = None


class RankRequest(Body):
    """An image, and the texts of which one describes it best."""

    image: ImageSource
    texts: Many[Text] = Field(min_length=1, examples=[["a photo of a cat", "a photo of a dog"]])


class EmbeddingResponse(BaseModel):
    embedding: list[float]
    dimension: int
    model: str = Field(description="NAME/PRETRAINED")
    normalized: bool


class EmbeddingsResponse(BaseModel):
    embeddings: list[list[float]]
    dimension: int
    model: str = Field(description="NAME/PRETRAINED")
    normalized: bool


class ItemError(BaseModel):
    index: int = Field(description="Of the item in the request, from 0.")
    error: str = Field(description="What was wrong and what is allowed.")
    code: str = Field(description="Stable, snake_case.")


class ImagesResponse(BaseModel):
    embeddings: list[list[float] | None] = Field(description="null where an image has an error.")
    errors: list[ItemError]
    dimension: int
    model: str = Field(description="NAME/PRETRAINED")
    normalized: bool


class RankedText(BaseModel):
    text: str
    probability: float = Field(description="Softmax over the texts of this request.")
    score: float = Field(description="Cosine similarity.")


class RankResponse(BaseModel):
    ranking: list[RankedText] = Field(description="Best first.")
    model: str


class HealthResponse(BaseModel):
    status: str
    device: str
    model: str
    cuda_available: bool
    gpu_name: str | None


class InfoResponse(BaseModel):
    model_name: str
    pretrained: str
    device: str
    dtypes: dict[str, str] = Field(description="Of the text and of the image tower.")
    embedding_dim: int
    context_length: int = Field(description="Texts are cut at this many tokens.")
    preprocess: str
    weights_digest: str
    normalize_default: bool
    image_formats: list[str]
    max_image_bytes: int
    max_image_pixels: int
    max_request_bytes: int
    max_request_items: int
    image_urls: bool
    qdrant_enabled: bool
    collection: str | None
    version: str
    revision: str | None = Field(description="The git revision that the Bento was built from.")


class ErrorResponse(BaseModel):
    error: str = Field(description="What was wrong and what is allowed.")
    code: str = Field(description="Stable, snake_case.")


def is_data_uri(value: str) -> bool:
    return value.lstrip()[:5].lower() == "data:"


def base64_bytes(value: str) -> bytes:
    """Decode base64, bare or in a data: URI. Raises `InvalidInput`."""
    if is_data_uri(value):
        head, comma, value = value.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidInput("image_base64 as a data: URI must be data:TYPE;base64,DATA")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"image_base64 is not base64: {error}") from None
