"""What each request must be answered with: a small table of embeddings, and of searches' hits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

_ALIKE: Final = 0.995  # an embedding in another dtype has a cosine of 0.999 and more
_NEARER: Final = 0.002  # another one of the table may not be nearer by more than this
_SCORE: Final = 0.01  # a hit's score may differ by this, for the same reason


class Wrong(Exception):
    """An answer with status 200 that does not belong to its request."""


class Expected:
    """The table: embeddings by the text or the name of the picture, hits by the search.

    Args:
        vectors: float32 of shape (dim,), L2-normalised, by what was embedded.
        hits: of each search the ids and the scores of its hits, best first.
    """

    def __init__(
        self,
        vectors: dict[str, np.ndarray],
        hits: dict[str, list[tuple[str, float]]] | None = None,
    ) -> None:
        self.keys = list(vectors)
        self.matrix = np.array(list(vectors.values()), np.float32)
        self.hits = hits or {}
        self._rows = {key: row for row, key in enumerate(self.keys)}

    def check_vector(self, key: str, values: Sequence[float] | np.ndarray) -> None:
        """Raise `Wrong` unless this is the L2-normalised embedding of `key`."""
        vector = np.asarray(values, np.float32)
        dim = self.matrix.shape[1]
        if vector.shape != (dim,):
            raise Wrong(f"the embedding has the shape {vector.shape}, not ({dim},)")
        norm = float(np.linalg.norm(vector))
        if not 0.99 < norm < 1.01:
            raise Wrong(f"the embedding has the norm {norm:.3f}, not 1")
        cosines = self.matrix @ vector
        own, best = float(cosines[self._rows[key]]), int(cosines.argmax())
        if cosines[best] > own + _NEARER:
            raise Wrong(f"the embedding is that of another request: {self.keys[best]!r}")
        if own < _ALIKE:
            raise Wrong(f"the embedding's cosine to the right one is {own:.3f}, below {_ALIKE}")

    def check_vectors(
        self, keys: Sequence[str], rows: Sequence[Sequence[float] | np.ndarray | None]
    ) -> None:
        """Raise `Wrong` unless the rows are the embeddings of `keys`, in this order."""
        if len(rows) != len(keys):
            raise Wrong(f"{len(rows)} embeddings for {len(keys)} inputs")
        for key, row in zip(keys, rows, strict=True):
            self.check_vector(key, [] if row is None else row)

    def check_hits(self, search: str, hits: Sequence[dict[str, Any]]) -> None:
        """Raise `Wrong` unless the hits are those that this search had when it came alone."""
        right = self.hits[search]
        if len(hits) != len(right):
            raise Wrong(f"{len(hits)} hits instead of {len(right)}")
        for place, (hit, (_, score)) in enumerate(zip(hits, right, strict=True)):
            if abs(hit["score"] - score) > _SCORE:
                raise Wrong(f"hit {place} has the score {hit['score']:.3f}, not {score:.3f}")
        if hits[0]["id"] not in {image_id for image_id, _ in right}:
            raise Wrong("the hits are those of another search")

    def save(self, file: Path, **figures: float) -> None:
        """Write the embeddings into an .npz file, and figures beside them."""
        np.savez(file, keys=np.array(self.keys), matrix=self.matrix, **figures)  # type: ignore[arg-type]

    @classmethod
    def load(cls, file: Path) -> tuple[Expected, dict[str, float]]:
        """Return what `save` wrote."""
        with np.load(file) as saved:
            vectors = dict(zip(saved["keys"].tolist(), saved["matrix"], strict=True))
            figures = {name: float(saved[name]) for name in saved if saved[name].ndim == 0}
        return cls(vectors), figures
