"""Diversity: choose hits that are relevant but differ from each other, for both engines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rag.store.interface import Match


def diverse(candidates: Sequence[Match], diversity: float, count: int) -> list[Match]:
    """Choose up to `count` matches that are relevant but differ from each other.

    Uses maximal marginal relevance (Carbonell and Goldstein, 1998). Each step chooses the match
    with the largest `(1 - diversity) * score - diversity * similarity`, where `similarity` is to
    the closest match chosen so far. Returns the matches in the order of these steps.
    """
    if not candidates:
        return []
    vectors = np.stack([match.vector for match in candidates if match.vector is not None])
    scores = np.array([match.score for match in candidates])
    nearest = np.full(len(candidates), -np.inf)  # similarity to the closest chosen match
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
