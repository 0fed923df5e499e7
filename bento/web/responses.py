"""Turn answers of handlers into HTTP responses: JSON or .npy, and errors in one shape."""

from __future__ import annotations

import base64
import io
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from bento.contract.embedding import NPY
from bento.contract.errors import ServiceError
from bento.handlers.embedding import Embedded, OpenAIEmbedded
from bento.web.errors import error_response

if TYPE_CHECKING:
    from bento.web.metrics import Metrics

Handler = Callable[[Request], Awaitable[Any]]
"""Takes a request and returns a response, a model of the contract, or embeddings."""

JSON: Final = "application/json"


class Responder:
    """Turns the answers of handlers into responses."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def respond(self, handle: Callable[[], Awaitable[Any]], accept: str) -> Response:
        """Return the answer of a handler, or its `ServiceError`, as a response.

        `accept` is the request's Accept header.
        """
        try:
            return self._response(await handle(), npy=NPY in accept)
        except ServiceError as error:
            return error_response(error)

    def wrap(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler that turns answers and `ServiceError`s of `handler` into responses."""

        @wraps(handler)
        async def answer(request: Request) -> Response:
            accept = request.headers.get("accept", "")
            return await self.respond(lambda: handler(request), accept)

        return answer

    def _response(self, answer: Any, *, npy: bool) -> Response:
        match answer:
            case Response():
                return answer
            case BaseModel():
                return Response(answer.model_dump_json(), media_type=JSON)
            case Embedded():
                with self._timed(answer.tower):
                    return _npy(answer.embeddings) if npy else _embedded(answer)
            case OpenAIEmbedded():
                return _npy(answer.embeddings) if npy else _openai(answer)
        raise TypeError(f"a handler returned {type(answer).__name__}")

    def _timed(self, tower: str) -> AbstractContextManager[Any]:
        return self._metrics.stage_seconds.labels(tower, "respond").time()


def _embedded(answer: Embedded) -> Response:
    embeddings, errors = answer.embeddings, answer.errors
    body: dict[str, Any]
    if embeddings.ndim == 1:
        body = {"embedding": embeddings}
    elif errors is None:
        body = {"embeddings": embeddings}
    else:
        body = {
            "embeddings": [None if i in errors else row for i, row in enumerate(embeddings)],
            "errors": [
                {"index": i, "error": str(error), "code": error.code} for i, error in errors.items()
            ],
        }
    return _json(
        {
            **body,
            "dimension": embeddings.shape[-1],
            "model": answer.model,
            "normalized": answer.normalized,
        }
    )


def _openai(answer: OpenAIEmbedded) -> Response:
    data = []
    for i, row in enumerate(answer.embeddings):
        bits = base64.b64encode(row.astype("<f4").tobytes()).decode() if answer.as_base64 else row
        data.append({"object": "embedding", "index": i, "embedding": bits})
    usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    return _json({"object": "list", "data": data, "model": answer.model, "usage": usage})


def _json(content: Any) -> Response:
    """Return a JSON response; orjson writes float32 as the shortest text with the same value."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON)


def _npy(embeddings: Any) -> Response:
    buffer = io.BytesIO()
    np.save(buffer, embeddings, allow_pickle=False)
    return Response(buffer.getvalue(), media_type=NPY)
