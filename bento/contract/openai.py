"""`/v1/embeddings`: OpenAI's request, answer and errors, with images besides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from bento.contract.base import Answer, Many, Request, Text, listed
from bento.contract.embedding import ImageSource, is_data_uri
from bento.contract.errors import InvalidRequest, describe_details, place


class InputItem(Request):
    """A text or an image, as exactly one of `text` and `image`."""

    text: Text | None = None
    image: str | None = Field(None, description="A data: URI or an http(s) URL.")

    @model_validator(mode="after")
    def _exactly_one(self) -> InputItem:
        if (self.text is None) == (self.image is None):
            raise ValueError("an input is exactly one of text and image")
        return self

    def image_source(self) -> ImageSource | None:
        if self.image is None:
            return None
        if is_data_uri(self.image):
            return ImageSource(image_base64=self.image)
        return ImageSource(image_url=self.image)


_ITEMS: Final = TypeAdapter(Many[InputItem])
_IMAGE: Final = re.compile(r"\s*data:(image/|[^,]*;base64,)", re.IGNORECASE)


def input_items(given: Sequence[Any]) -> list[InputItem]:
    """Return the inputs of a request as items. Raises `InvalidRequest`."""
    if any(isinstance(item, int | list) for item in given):
        raise InvalidRequest("input: token ids are not taken: send texts", param="input")
    try:
        return _ITEMS.validate_python(
            [
                {"image" if _IMAGE.match(item) else "text": item} if isinstance(item, str) else item
                for item in given
            ]
        )
    except ValidationError as error:
        details = [{**detail, "loc": ("input", *detail["loc"])} for detail in error.errors()]
        raise InvalidRequest(describe_details(details), param=place(details[0])) from None


_ITEM_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"text": {"type": "string"}, "image": {"type": "string"}},
            "additionalProperties": False,
        },
    ],
}


class OpenAIEmbeddingsRequest(Request):
    """The embeddings request of OpenAI's API, with images besides."""

    model: str = Field(description="The model that is served: NAME or NAME/PRETRAINED.")
    input: Annotated[
        list[Any],  # items they become when they are counted: see `input_items`
        BeforeValidator(listed),
        Field(
            min_length=1,
            description="A string or a list of them. An image is a data: URI, or {image: URI}.",
            examples=[["a red circle", {"text": "a blue square"}]],
        ),
        WithJsonSchema(
            {"anyOf": [*_ITEM_SCHEMA["anyOf"], {"type": "array", "items": _ITEM_SCHEMA}]}
        ),
    ]
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64 is of float32, little-endian."
    )
    dimensions: int | None = Field(
        None, ge=1, description="Keep so many leading values, normalised anew."
    )
    user: str | None = Field(None, description="Not used.")


class OpenAIEmbedding(Answer):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(Answer):
    prompt_tokens: int = Field(description="What the text tower saw; images have none.")
    total_tokens: int


class OpenAIEmbeddingsResponse(Answer):
    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class OpenAIError(Answer):
    message: str = Field(description="What was wrong and what is allowed.")
    type: str = Field(description="invalid_request_error, or another of OpenAI's types.")
    param: str | None = Field(None, description="The field that is wrong, if it is one.")
    code: str = Field(description="Stable, snake_case.")


class OpenAIErrorResponse(Answer):
    error: OpenAIError


def openai_error(status: int, message: str, code: str, param: str | None) -> OpenAIErrorResponse:
    """Return an error in OpenAI's shape."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return OpenAIErrorResponse(
        error=OpenAIError(message=message, type=kind, param=param, code=code)
    )


_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
