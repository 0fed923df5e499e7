"""Bodies that are no plain JSON models: multipart forms in, embeddings out as JSON or .npy."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final

import numpy as np
import orjson
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from bento.contract.errors import EncoderError, InvalidInput, TooLarge, UnsupportedMediaType
from bento.encoder.embeddings import Embeddings

NPY: Final = "application/x-npy"
accept: Final[ContextVar[str]] = ContextVar("accept", default="")  # of the request at hand


class JsonAnswer(Response):
    """JSON by orjson, which takes NumPy arrays and writes float32 as short as it is exact."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def embedding_answer(embedding: Embeddings, model: str, normalized: bool) -> Response:
    """Answer with the embedding of one item, float32 (dim,)."""
    if _wants_npy():
        return _npy(embedding)
    return JsonAnswer(
        {
            "embedding": embedding,
            "dimension": len(embedding),
            "model": model,
            "normalized": normalized,
        }
    )


def embeddings_answer(embeddings: Embeddings, model: str, normalized: bool) -> Response:
    """Answer with the embeddings of many items, float32 (n, dim)."""
    if _wants_npy():
        return _npy(embeddings)
    return JsonAnswer(
        {
            "embeddings": embeddings,
            "dimension": embeddings.shape[1],
            "model": model,
            "normalized": normalized,
        }
    )


def images_answer(
    rows: Sequence[Embeddings | EncoderError], dimension: int, model: str, normalized: bool
) -> Response:
    """Answer with what each of many images got: its embedding or an error.

    In a `.npy` body the row of a bad image is NaN.
    """
    if _wants_npy():
        bad = np.full(dimension, np.nan, np.float32)
        return _npy(np.stack([bad if isinstance(row, EncoderError) else row for row in rows]))
    return JsonAnswer(
        {
            "embeddings": [None if isinstance(row, EncoderError) else row for row in rows],
            "errors": [
                {"index": i, "error": str(row), "code": row.code}
                for i, row in enumerate(rows)
                if isinstance(row, EncoderError)
            ],
            "dimension": dimension,
            "model": model,
            "normalized": normalized,
        }
    )


def openai_answer(
    embeddings: Embeddings, model: str, *, base64_encoded: bool, tokens: int
) -> Response:
    """Answer as OpenAI's API does, with embeddings, float32 (n, dim), and the tokens seen."""
    if _wants_npy():
        return _npy(embeddings)
    data = []
    for i, row in enumerate(embeddings):
        value = base64.b64encode(row.astype("<f4").tobytes()).decode() if base64_encoded else row
        data.append({"object": "embedding", "index": i, "embedding": value})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JsonAnswer({"object": "list", "data": data, "model": model, "usage": usage})


def _wants_npy() -> bool:
    """Say whether the request at hand asks for a `.npy` body in its Accept header."""
    return NPY in accept.get()


def _npy(embeddings: Embeddings) -> Response:
    buffer = io.BytesIO()
    np.save(buffer, embeddings, allow_pickle=False)
    return Response(buffer.getvalue(), media_type=NPY)


async def read_upload(request: Request) -> tuple[bytes, bool | None]:
    """Return the `file` of a multipart form, and its `normalize` if it has one.

    Raises `InvalidInput` when there is no such file, or anything else besides.
    """
    async with request.form(max_files=1, max_fields=2) as form:
        normalize = _normalize_of(form, {"file"})
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidInput("send the picture as multipart/form-data, in a field named file")
        return await read_picture(file), normalize


async def read_uploads(
    request: Request, max_files: int
) -> tuple[list[bytes | EncoderError], bool | None]:
    """Return all `files` of a multipart form, and its `normalize` if it has one.

    In place of a file that is said to be no picture is its error.
    Raises `InvalidInput` when there is none, or anything else besides, and `TooLarge`.
    """
    try:
        async with request.form(max_files=max_files, max_fields=2) as form:
            normalize = _normalize_of(form, {"files"})
            files = form.getlist("files")
            if not files or not all(isinstance(file, UploadFile) for file in files):
                raise InvalidInput(
                    "send the pictures as multipart/form-data, each in a field named files"
                )
            pictures = [await _picture_or_error(f) for f in files if isinstance(f, UploadFile)]
            return pictures, normalize
    except HTTPException as error:
        if "Too many files" in error.detail:
            raise TooLarge(f"at most {max_files:,} images are allowed in one request") from None
        raise


async def _picture_or_error(file: UploadFile) -> bytes | EncoderError:
    try:
        return await read_picture(file)
    except UnsupportedMediaType as error:
        return error


async def read_picture(file: UploadFile) -> bytes:
    """Return the bytes of an uploaded picture; its name is not looked at.

    Raises `UnsupportedMediaType` when it is said to be something else.
    """
    media_type = (file.content_type or "").partition(";")[0].strip().lower()
    if media_type.startswith("image/") or media_type in ("", "application/octet-stream"):
        return await file.read()
    raise UnsupportedMediaType(
        f"a picture is sent as image/… or application/octet-stream, not {media_type[:80]}"
    )


def _normalize_of(form: FormData, others: set[str]) -> bool | None:
    if unknown := form.keys() - others - {"normalize"}:
        raise InvalidInput(f"{', '.join(sorted(unknown))}: not a field of this request")
    normalize = form.get("normalize")
    if normalize not in (None, "true", "false"):
        raise InvalidInput(f"normalize must be true or false, not {normalize!r}")
    return None if normalize is None else normalize == "true"
