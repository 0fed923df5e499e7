"""OpenCLIP without the code of this project, as the reference for embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image


class Reference:
    """Embeds with OpenCLIP in float32, one item at a time."""

    def __init__(self, model: Any, preprocess: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.preprocess = preprocess
        self.tokenizer = tokenizer

    def text(self, text: str, normalize: bool) -> Any:
        with torch.inference_mode():
            return self.model.encode_text(self.tokenizer([text]), normalize=normalize)[0]

    def image(self, image: Image.Image, normalize: bool) -> Any:
        with torch.inference_mode():
            return self.model.encode_image(self.preprocess(image)[None], normalize=normalize)[0]

    def texts(self, texts: Iterable[str], *, normalize: bool = True) -> Any:
        return torch.stack([self.text(text, normalize) for text in texts]).numpy()

    def images(self, images: Iterable[Image.Image], *, normalize: bool = True) -> Any:
        return torch.stack([self.image(image, normalize) for image in images]).numpy()
