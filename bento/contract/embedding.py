"""Embedding and ranking: requests and answers."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final, Literal, Protocol

from pydantic import Field, WithJsonSchema, model_validator

from bento.contract.base import Answer, Many, Request, Text
from bento.contract.errors import InvalidRequest
from bento.contract.limits import MAX_URL

NPY: Final = "application/x-npy"
"""Media type of a .npy file: what the embedding routes answer when `Accept` names it."""

Normalize = Annotated[
    bool | None,
    Field(description="L2-normalise the embedding; without it, as the service is set."),
]
File = Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})]
Model = Annotated[str, Field(description="NAME/PRETRAINED")]
Languages = Literal["english", "multilingual"]


class TextRequest(Request):
    text: Text = Field(examples=["a red circle to the left of a blue square"])
    normalize: Normalize = None


class ImageSource(Request):
    """An image, as exactly one of `image_url` and `image_base64`."""

    image_url: str | None = Field(
        None, max_length=MAX_URL, description="http(s), public addresses."
    )
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


class TextsRequest(Request):
    texts: Many[Text] = Field(min_length=1, examples=[["a red circle", "a blue square"]])
    normalize: Normalize = None


class UploadForm(Request):
    """A multipart form with a picture."""

    file: File
    normalize: Normalize = None


class UploadsForm(Request):
    """A multipart form with many pictures."""

    files: list[File]
    normalize: Normalize = None


class RankRequest(Request):
    """An image, and the texts of which one describes it best."""

    image: ImageSource
    texts: Many[Text] = Field(min_length=1, examples=[["a photo of a cat", "a photo of a dog"]])


class EmbeddingResponse(Answer):
    embedding: list[float]
    dimension: int
    model: Model
    normalized: bool


class EmbeddingsResponse(Answer):
    embeddings: list[list[float]]
    dimension: int
    model: Model
    normalized: bool


class ItemError(Answer):
    index: int = Field(description="Of the item in the request, from 0.")
    error: str = Field(description="What was wrong and what is allowed.")
    code: str = Field(description="Stable, snake_case.")


class ImagesResponse(Answer):
    embeddings: list[list[float] | None] = Field(description="null where an image has an error.")
    errors: list[ItemError]
    dimension: int
    model: Model
    normalized: bool


class RankedText(Answer):
    text: str
    probability: float = Field(description="Softmax over the texts of this request.")
    score: float = Field(0.0, description="Cosine similarity.")


class RankResponse(Answer):
    ranking: list[RankedText] = Field(description="Best first.")
    model: Model = ""


class HealthResponse(Answer):
    status: str
    device: str = ""
    model: Model = ""
    cuda_available: bool = False
    gpu_name: str | None = None


class InfoResponse(Answer):
    model_name: str
    pretrained: str = ""
    device: str = ""
    dtypes: dict[str, str] = Field({}, description="Of the text and of the image tower.")
    embedding_dim: int
    context_length: int = Field(0, description="Texts are truncated at this many tokens.")
    languages: Languages | None = Field(
        None, description="The languages of texts that the model knows; null if unknown."
    )
    preprocess: str = ""
    weights_digest: str = ""
    normalize_default: bool = True
    image_formats: list[str] = Field([])
    max_image_bytes: int = 0
    max_image_pixels: int = 0
    max_request_bytes: int = 0
    max_request_items: int = 0
    image_urls: bool = False
    qdrant_enabled: bool = False
    collection: str | None = None
    version: str = ""
    revision: str | None = Field(
        None, description="The git revision that the Bento was built from."
    )


class ErrorResponse(Answer):
    error: str = Field(description="What was wrong and what is allowed.")
    code: str = Field(description="Stable, snake_case.")


def is_data_uri(value: str) -> bool:
    return value.lstrip()[:5].lower() == "data:"


def base64_bytes(value: str) -> bytes:
    """Decode base64, bare or in a data: URI. Raises `InvalidRequest`."""
    if is_data_uri(value):
        head, comma, value = value.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidRequest("image_base64 as a data: URI must be data:TYPE;base64,DATA")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"image_base64 is not base64: {error}") from None


def base64_of(data: bytes) -> str:
    """Return bytes in base64."""
    return base64.b64encode(data).decode()
