"""Embed the inputs with OpenCLIP: `python -m loadtests.traffic.reference FILE`.

MODEL_NAME and MODEL_PRETRAINED select the model. It runs in float32 on one core, one input at a
time. The file has the embeddings, and the mean milliseconds of one text (`text_ms`) and of one
image (`image_ms`), including tokenization and preprocessing.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from loadtests.traffic.expected import Expected
from loadtests.traffic.inputs import TEXTS, pictures


def main() -> None:
    name, tag = os.environ["MODEL_NAME"], os.environ.get("MODEL_PRETRAINED")
    model, preprocess = open_clip.create_model_from_pretrained(
        name, None if name.startswith(("local-dir:", "hf-hub:")) else tag
    )
    model.eval()
    torch.set_num_threads(1)  # more threads would wait for each other on a busy machine
    tokenizer = open_clip.get_tokenizer(name)

    def image(data: bytes) -> Any:
        return model.encode_image(preprocess(Image.open(io.BytesIO(data)))[None], normalize=True)

    with torch.inference_mode():
        texts, text_ms = _timed(
            lambda text: model.encode_text(tokenizer([text]), normalize=True), TEXTS
        )
        images, image_ms = _timed(image, pictures().values())
    table = dict(zip((*TEXTS, *pictures()), (*texts, *images), strict=True))
    Expected(table).save(Path(sys.argv[1]), text_ms=text_ms, image_ms=image_ms)


def _timed(embed: Callable[[Any], Any], inputs: Iterable[Any]) -> tuple[list[np.ndarray], float]:
    """Return the embeddings and the mean time per input, in ms."""
    rows: list[np.ndarray] = []
    took: list[float] = []
    for item in inputs:
        if not rows:
            embed(item)  # warm up: the first call is slower
        began = time.perf_counter()
        rows.append(embed(item)[0].numpy())
        took.append(1000 * (time.perf_counter() - began))
    return rows, fmean(took)


if __name__ == "__main__":
    main()
