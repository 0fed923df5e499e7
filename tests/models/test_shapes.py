"""The training of the bundled model, and its recall."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from models.shapes import MODEL_DIR
from models.shapes.captions import caption
from models.shapes.evaluate import evaluate
from models.shapes.scenes import sample_scene
from models.shapes.train import MODEL_CFG, tokenize

pytestmark = pytest.mark.service


def test_training_tokenizes_as_open_clip_does() -> None:
    rng = np.random.default_rng(0)
    texts = [caption(sample_scene(rng), language, rng) for language in ("en", "uk") * 100]
    wanted = SimpleTokenizer(context_length=MODEL_CFG["text_cfg"]["context_length"])(texts)
    got = tokenize(texts)
    assert torch.equal(wanted[:, : got.shape[1]], got)
    assert not wanted[:, got.shape[1] :].any()  # no text is truncated


def test_the_recall_of_a_few_scenes_is_high() -> None:
    measured = recalls(evaluate(MODEL_DIR, 200))
    assert len(measured) == 10
    for one, five in measured.values():
        assert one >= 0.95
        assert five >= 0.99


@pytest.mark.slow
def test_the_recall_is_that_of_the_model_card() -> None:
    measured = recalls(evaluate(MODEL_DIR, 1000))
    claimed = recalls((MODEL_DIR / "README.md").read_text())
    assert measured.keys() == claimed.keys()
    assert measured
    for kind, recall in measured.items():  # the last digits depend on the processor
        assert recall == pytest.approx(claimed[kind], abs=0.01)


def recalls(text: str) -> dict[tuple[str, str], tuple[float, float]]:
    """Return recall@1 and recall@5 of each language and kind of scene in a table."""
    rows = re.findall(r"\| (en|uk) \| (\w+) \| \d+ \| ([\d.]+) \| ([\d.]+) \|", text)
    return {(language, kind): (float(one), float(five)) for language, kind, one, five in rows}
