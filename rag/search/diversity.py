"""Diversity: hits that are relevant and unlike each other, the same for both engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from rag.store.interface import Match

CANDIDATES: Final = 500  # that diversity chooses from


def diverse(candidates: Sequence[Match], diversity: float, count: int) -> list[Match]:
    """Choose matches that are relevant and unlike each other, in the order of choosing.

    Maximal marginal relevance (Carbonell and Goldstein, 1998): each time the one with the
    largest `(1 - diversity) * score - diversity * similarity to what is chosen`.
    """
    if not candidates:
        return []
    vectors = np.stack([match.vector for match in candidates if match.vector is not None])
    scores = np.array([match.score for match in candidates])
    nearest = np.full(len(candidates), -np.inf)  # similarity to what is chosen
    left = np.ones(len(candidates), bool)
    order = [int(np.argmax(scores))]
    while True:
        last = order[-1]
        left[last] = False
        if len(order) == min(count, len(candidates)):
            return [candidates[i] for i in order]
        nearest = np.maximum(nearest, vectors @ vectors[last])
        value = (1 - diversity) * scores - diversity * nearest
        order.append(int(np.argmax(np.where(left, value, -np.inf))))
