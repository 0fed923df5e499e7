"""A typical hand-written service, for comparison.

    MODEL_NAME=… PORT=… python -m benchmarks.support.handwritten

It is a Starlette app on uvicorn: float32, no batching, texts padded to the context, and inference
in Starlette's thread pool.
"""

from __future__ import annotations

import io
import os
from typing import Any

import open_clip
import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


class Embedder:
    """OpenCLIP, used as in its README."""

    def __init__(self, model_name: str, device: str) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = device
        self._model, self._preprocess = open_clip.create_model_from_pretrained(
            model_name, device=device
        )
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(model_name)

    @torch.inference_mode()
    def text(self, text: str) -> list[float]:
        tokens = self._tokenizer([text]).to(self._device)
        return self._row(self._model.encode_text(tokens, normalize=True))

    @torch.inference_mode()
    def image(self, data: bytes) -> list[float]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        pixels = self._preprocess(image)[None].to(self._device)
        return self._row(self._model.encode_image(pixels, normalize=True))

    def _row(self, embeddings: Any) -> list[float]:
        row: list[float] = embeddings[0].cpu().tolist()
        return row


def application(embedder: Embedder) -> Starlette:
    """Return the app with the routes that the load generator uses."""

    async def embed_text(request: Request) -> Response:
        body = await request.json()
        return _answer(await run_in_threadpool(embedder.text, body["text"]))

    async def embed_image(request: Request) -> Response:
        async with request.form() as form:
            upload = form["file"]
            assert isinstance(upload, UploadFile)
            data = await upload.read()
        return _answer(await run_in_threadpool(embedder.image, data))

    async def ready(_: Request) -> Response:
        return Response()

    return Starlette(
        routes=[
            Route("/embed/text", embed_text, methods=["POST"]),
            Route("/embed/image/upload", embed_image, methods=["POST"]),
            Route("/readyz", ready),
        ]
    )


def _answer(embedding: list[float]) -> Response:
    return JSONResponse({"embedding": embedding, "dimension": len(embedding)})


if __name__ == "__main__":
    served = Embedder(os.environ["MODEL_NAME"], os.environ.get("DEVICE", "auto"))
    uvicorn.run(application(served), port=int(os.environ["PORT"]), log_level="warning")
