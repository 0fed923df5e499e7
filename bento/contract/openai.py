"""`/v1/embeddings`: OpenAI's requests, answers and errors, extended by images."""

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
from bento.contract.embedding import Code, ImageSource, Sentence, is_data_uri
from bento.contract.errors import InvalidRequest, describe_details, place


class InputItem(Request):
    """One input: exactly one of `text` and `image`."""

    text: Text | None = None
    image: str | None = Field(None, description="A base64 data: URI or an http(s) URL.")

    @model_validator(mode="after")
    def _exactly_one(self) -> InputItem:
        if (self.text is None) == (self.image is None):
            raise ValueError("give exactly one of text and image")
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
    """Parse the inputs of a request. Raises `InvalidRequest`."""
    if any(isinstance(item, int | list) for item in given):
        raise InvalidRequest("input: token ids are not supported; send texts", param="input")
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
    """An embeddings request of OpenAI's API, extended by images."""

    model: str = Field(description="The model of this service, as NAME or NAME/PRETRAINED.")
    input: Annotated[
        list[Any],  # `input_items` parses the items after the handler has checked their number
        BeforeValidator(listed),
        Field(
            min_length=1,
            description="An input or a list of inputs: a text, a base64 data: URI of an image, "
            '{"text": …} or {"image": …}.',
            examples=[["a red circle", {"text": "a blue square"}]],
        ),
        WithJsonSchema(
            {"anyOf": [*_ITEM_SCHEMA["anyOf"], {"type": "array", "items": _ITEM_SCHEMA}]}
        ),
    ]
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="`base64` encodes little-endian float32."
    )
    dimensions: int | None = Field(
        None, ge=1, description="Keep this many leading values, and normalize again."
    )
    user: str | None = Field(None, description="Ignored.")


class OpenAIEmbedding(Answer):
    """The embedding of one input; `index` is its position in the request, from 0."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(Answer):
    """Token counts of a request."""

    prompt_tokens: int = Field(
        description="Tokens of all texts after truncation; images count as 0."
    )
    total_tokens: int


class OpenAIEmbeddingsResponse(Answer):
    """An embeddings answer of OpenAI's API."""

    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class OpenAIError(Answer):
    """An error as OpenAI's API describes it."""

    message: Sentence
    type: str = Field(description="One of OpenAI's error types, such as `invalid_request_error`.")
    param: str | None = Field(None, description="The wrong field, if there is one.")
    code: Code


class OpenAIErrorResponse(Answer):
    """The body of every error on `/v1`."""

    error: OpenAIError


def openai_error(status: int, message: str, code: str, param: str | None) -> OpenAIErrorResponse:
    """Return the body of an error in OpenAI's shape."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return OpenAIErrorResponse(
        error=OpenAIError(message=message, type=kind, param=param, code=code)
    )


_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
