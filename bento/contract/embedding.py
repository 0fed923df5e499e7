"""Embedding, ranking and service state: requests and answers."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final, Literal, Protocol

from pydantic import Field, WithJsonSchema, model_validator

from bento.contract.base import Answer, Many, Request, Text
from bento.contract.errors import InvalidRequest
from bento.contract.limits import MAX_URL

NPY: Final = "application/x-npy"
"""Media type of a .npy file. The embedding routes answer with one if `Accept` asks for it."""

Normalize = Annotated[
    bool | None,
    Field(description="Whether to L2-normalize embeddings; default: NORMALIZE_EMBEDDINGS."),
]
File = Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})]
ImageUrl = Annotated[
    str | None,
    Field(max_length=MAX_URL, description="An http or https URL; needs ALLOW_IMAGE_URLS=true."),
]
ImageBase64 = Annotated[
    str | None, Field(description="The image file in base64, with or without a data: URI prefix.")
]
Model = Annotated[str, Field(description="NAME/PRETRAINED of the served model.")]
Code = Annotated[str, Field(description="Stable error code in snake_case.")]
Sentence = Annotated[str, Field(description="What was wrong and what is allowed.")]
Languages = Literal["english", "multilingual"]


class TextRequest(Request):
    """A text to embed."""

    text: Text = Field(examples=["a red circle to the left of a blue square"])
    normalize: Normalize = None


class ImageSource(Request):
    """An image, given as exactly one of `image_url` and `image_base64`."""

    image_url: ImageUrl = None
    image_base64: ImageBase64 = None

    @model_validator(mode="after")
    def _exactly_one(self) -> ImageSource:
        if (self.image_url is None) == (self.image_base64 is None):
            raise ValueError("give exactly one of image_url and image_base64")
        return self


class ImageGiven(Protocol):
    """Any request that gives an image as a URL or in base64."""

    image_url: str | None
    image_base64: str | None


class ImageRequest(ImageSource):
    """An image to embed."""

    normalize: Normalize = None


class TextsRequest(Request):
    """Texts to embed."""

    texts: Many[Text] = Field(
        min_length=1,
        description="Texts that are not empty; at most `max_request_items` (see `/info`).",
        examples=[["a red circle", "a blue square"]],
    )
    normalize: Normalize = None


class UploadForm(Request):
    """A multipart form with one image file."""

    file: File = Field(description="The image file.")
    normalize: Normalize = None


class UploadsForm(Request):
    """A multipart form with several image files."""

    files: list[File] = Field(description="Image files; at most `max_request_items` (see `/info`).")
    normalize: Normalize = None


class RankRequest(Request):
    """An image, and texts to rank by how well they describe it."""

    image: ImageSource = Field(description="An object with `image_url` or `image_base64`.")
    texts: Many[Text] = Field(
        min_length=1,
        description="Texts that are not empty; at most `max_request_items` (see `/info`).",
        examples=[["a photo of a cat", "a photo of a dog"]],
    )


class EmbeddingResponse(Answer):
    """The embedding of one text or image."""

    embedding: list[float]
    dimension: int
    model: Model
    normalized: bool


class EmbeddingsResponse(Answer):
    """The embeddings of texts, in the order of the request."""

    embeddings: list[list[float]]
    dimension: int
    model: Model
    normalized: bool


class ItemError(Answer):
    """The error of one item of a request."""

    index: int = Field(description="Position of the item in the request, from 0.")
    error: Sentence
    code: Code


class ImagesResponse(Answer):
    """The embeddings of images, in the order of the request."""

    embeddings: list[list[float] | None] = Field(description="null for an image with an error.")
    errors: list[ItemError]
    dimension: int
    model: Model
    normalized: bool


class RankedText(Answer):
    """One text of a ranking."""

    text: str
    probability: float = Field(description="Softmax over all texts of the request.")
    score: float = Field(0.0, description="Cosine similarity to the image.")


class RankResponse(Answer):
    """Texts, ranked by how well they describe the image."""

    ranking: list[RankedText] = Field(description="Best match first.")
    model: Model = ""


class HealthResponse(Answer):
    """The state of the device."""

    status: str
    device: str = ""
    model: Model = ""
    cuda_available: bool = False
    gpu_name: str | None = None


class InfoResponse(Answer):
    """The model, its preprocessing, and the settings that a client needs to know."""

    model_name: str
    pretrained: str = ""
    device: str = ""
    dtypes: dict[str, str] = Field({}, description="Data type of the `text` and `image` towers.")
    embedding_dim: int
    context_length: int = Field(0, description="The model truncates texts at this many tokens.")
    languages: Languages | None = Field(
        None, description="The languages of texts that the model knows; null if unknown."
    )
    preprocess: str = Field("", description="Preprocessing of images, in one line.")
    weights_digest: str = Field("", description="Hexadecimal digest of the weights.")
    normalize_default: bool = Field(True, description="`normalize` of requests without it.")
    image_formats: list[str] = Field([])
    max_image_bytes: int = 0
    max_image_pixels: int = 0
    max_request_bytes: int = 0
    max_request_items: int = Field(0, description="Texts or images in one request.")
    image_urls: bool = Field(False, description="Whether the service fetches image URLs.")
    qdrant_enabled: bool = Field(False, description="Whether search is available.")
    collection: str | None = Field(None, description="Default collection; null without search.")
    version: str = ""
    revision: str | None = Field(
        None, description="Git revision that the Bento was built from; null in a checkout."
    )


class ErrorResponse(Answer):
    """The body of every error, except on `/v1`."""

    error: Sentence
    code: Code


def is_data_uri(value: str) -> bool:
    """Return whether a string starts with `data:`, ignoring case and leading white space."""
    return value.lstrip()[:5].lower() == "data:"


def base64_bytes(value: str) -> bytes:
    """Decode base64 with or without a data: URI prefix. Raises `InvalidRequest`."""
    if is_data_uri(value):
        head, comma, value = value.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidRequest("the data: URI of an image must be data:TYPE;base64,DATA")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            "the image is not valid base64: use the characters A-Z a-z 0-9 + / and = as padding"
        ) from None


def base64_of(data: bytes) -> str:
    """Encode bytes in base64."""
    return base64.b64encode(data).decode()
