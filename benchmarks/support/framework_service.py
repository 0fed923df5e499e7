"""A service without a model, for `benchmarks.framework`. It always gives the same answer.

The APIs take a request only so that BentoML parses it.

`FRAMEWORK_WITHOUT` names the layers to turn off, separated by commas.
"""

from __future__ import annotations

import os
from typing import Any, Final

import bentoml
from starlette.responses import Response

from bento.contract.embedding import EmbeddingResponse, TextRequest

_OFF: Final[dict[str, dict[str, Any]]] = {
    "access log": {"logging": {"access": {"enabled": False}}},
    "tracing": {"tracing": {"excluded_urls": ".*"}},
    "metrics": {"metrics": {"enabled": False}},
}
_settings: dict[str, Any] = {"http": {"port": int(os.environ.get("PORT", "8001"))}}
for _layer in filter(None, os.environ.get("FRAMEWORK_WITHOUT", "").split(",")):
    _settings |= _OFF[_layer]

_ANSWER: Final = EmbeddingResponse(
    embedding=[i / 512 - 0.5 for i in range(512)], dimension=512, model="none", normalized=True
)
_BODY: Final = _ANSWER.model_dump_json().encode()


@bentoml.service(name="framework", **_settings)
class Models:
    """Returns a pydantic model, which BentoML serializes."""

    @bentoml.api(route="/embed/text")
    async def embed_text(self, request: TextRequest, /) -> EmbeddingResponse:  # noqa: ARG002
        return _ANSWER


@bentoml.service(name="framework", **_settings)
class Responses:
    """Returns a response that is ready to send."""

    @bentoml.api(route="/embed/text")
    async def embed_text(self, request: TextRequest, /) -> EmbeddingResponse:  # noqa: ARG002
        return Response(_BODY, media_type="application/json")  # type: ignore[return-value]
