"""Write a table of embeddings, and times: `python -m loadtests.traffic.reference FILE`.

The model is that of MODEL_NAME and MODEL_PRETRAINED, in float32, one input at a time. The file has
`text_ms` and `image_ms`, what one core of this machine takes for one, tokens and pixels included.
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
    torch.set_num_threads(1)  # several wait for each other where a core has something else to do
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
    """Return the embeddings and the mean time of one, in ms."""
    rows: list[np.ndarray] = []
    took: list[float] = []
    for item in inputs:
        if not rows:
            embed(item)  # the first one is slower
        began = time.perf_counter()
        rows.append(embed(item)[0].numpy())
        took.append(1000 * (time.perf_counter() - began))
    return rows, fmean(took)


if __name__ == "__main__":
    main()
