"""Predict how long batches take from the batches that ran."""

from __future__ import annotations

import math
from typing import Final

# Each later batch multiplies the weight of a batch by this, so that about the last ten count.
DECAY: Final = 0.9


class Pace:
    """Predicts seconds = `per_unit` * size + `per_batch`.

    Both factors are a least-squares fit over the latest batches, and at least 0. `best` is the
    lowest time per unit of size of any batch so far, and infinity before the first.
    """

    def __init__(self) -> None:
        self.per_unit = 0.0
        self.per_batch = 0.0
        self.best = math.inf
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    @property
    def usual_size(self) -> float:
        """Return the mean size of the latest batches, 0 before the first."""
        return self._x / self._n if self._n else 0.0

    def observe(self, size: float, seconds: float) -> None:
        """Learn from a batch of this size and duration."""
        self.best = min(self.best, seconds / size)
        self._n = DECAY * self._n + 1
        self._x = DECAY * self._x + size
        self._y = DECAY * self._y + seconds
        self._xx = DECAY * self._xx + size * size
        self._xy = DECAY * self._xy + size * seconds
        mean = self._y / self._x
        spread = self._n * self._xx - self._x * self._x
        if spread > 1e-3 * self._x * self._x:
            slope = (self._n * self._xy - self._x * self._y) / spread
            self.per_unit = min(max(slope, 0.0), mean)
        else:  # `per_unit` and `per_batch` cannot be told apart at one size
            self.per_unit = mean
        self.per_batch = max(0.0, (self._y - self.per_unit * self._x) / self._n)

    def seconds(self, size: float, batches: int = 1) -> float:
        """Return the predicted duration of `batches` batches with this total size."""
        return self.per_unit * size + self.per_batch * batches
