"""The bodies of the HTTP API, as pydantic models."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from bento.errors import InvalidInput

Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000),
    Field(description="Not empty. What lies beyond the model's context is cut off."),
]
Normalize = Annotated[
    bool | None,
    Field(description="L2-normalise the embedding; without it, as the service is set."),
]
ImageId = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
DaoId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=256),
    Field(description="The tenant that a picture belongs to."),
]
CollectionName = Annotated[
    str | None,
    Field(
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="A collection other than IMAGE_SEARCH_COLLECTION.",
    ),
]


class Body(BaseModel):
    """A request: unknown fields are errors, so that a typo is noticed."""

    model_config = ConfigDict(extra="forbid", strict=True)


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


class ImageRequest(ImageSource):
    normalize: Normalize = None


class TextsRequest(Body):
    texts: list[Text] = Field(min_length=1, examples=[["a red circle", "a blue square"]])
    normalize: Normalize = None


class RankRequest(Body):
    """An image, and the texts of which one describes it best."""

    image: ImageSource
    texts: list[Text] = Field(min_length=1, examples=[["a photo of a cat", "a photo of a dog"]])


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


class IndexRequest(ImageSource):
    """A picture to index, with what is known about it."""

    id: ImageId = Field(description="Your name for the picture; indexing it again replaces it.")
    dao_id: DaoId = "default"
    image_path: str = Field("", max_length=4096, description="Where you keep the picture.")
    metadata: dict[str, Any] = Field(
        default_factory=dict, description="title, category, tags and whatever else you like."
    )
    collection: CollectionName = None


class IndexResponse(BaseModel):
    id: str
    dao_id: str
    collection: str
    indexed: bool = Field(description="False when this very picture was there already.")


class DeleteResponse(BaseModel):
    id: str
    dao_id: str
    deleted: bool


class SearchRequest(Body):
    """A search by text or by image."""

    text: Text | None = Field(None, examples=["a red circle"])
    image: ImageSource | None = None
    top_k: int | None = Field(None, ge=1, le=1000)
    dao_id: DaoId | None = Field(None, description="Search the pictures of this tenant only.")
    score_threshold: float | None = Field(None, ge=-1, le=1)
    collection: CollectionName = None

    @model_validator(mode="after")
    def _exactly_one(self) -> SearchRequest:
        if (self.text is None) == (self.image is None):
            raise ValueError("give exactly one of text and image")
        return self


class Hit(BaseModel):
    id: str
    score: float = Field(description="Cosine similarity, best 1.")
    path: str
    payload: dict[str, Any]


class SearchResponse(BaseModel):
    hits: list[Hit]
    count: int
    model: str


class StatsResponse(BaseModel):
    collection: str
    points: int
    model: str = Field(description="NAME/PRETRAINED")
    dimension: int


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


class ErrorResponse(BaseModel):
    error: str = Field(description="What was wrong and what is allowed.")
    code: str = Field(description="Stable, snake_case.")


def base64_bytes(value: str) -> bytes:
    """Decode base64, bare or in a data: URI. Raises `InvalidInput`."""
    if value.startswith("data:"):
        head, comma, value = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise InvalidInput("image_base64 as a data: URI must be data:TYPE;base64,DATA")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"image_base64 is not base64: {error}") from None
