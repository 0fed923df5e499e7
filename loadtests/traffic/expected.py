"""The correct answers: a small table of embeddings and of search hits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

_ALIKE: Final = 0.995  # the lowest cosine; an embedding in another dtype has at least 0.999
_NEARER: Final = 0.002  # no other embedding of the table may have a cosine higher by more than this
_SCORE: Final = 0.01  # the largest difference of a hit's score; it, too, depends on the dtype


class Wrong(Exception):
    """An answer with status 200 that does not belong to its request."""


class Expected:
    """A table of embeddings by their text or image name, and of hits by the name of the search.

    Args:
        vectors: float32 arrays of shape (dim,), L2-normalised.
        hits: the id and the score of each hit, best first.
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
        """Raise `Wrong` unless `values` is the L2-normalised embedding of `key`."""
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
            raise Wrong(f"the embedding belongs to another request: {self.keys[best]!r}")
        if own < _ALIKE:
            raise Wrong(f"the cosine to the correct embedding is {own:.3f}, below {_ALIKE}")

    def check_vectors(
        self, keys: Sequence[str], rows: Sequence[Sequence[float] | np.ndarray | None]
    ) -> None:
        """Raise `Wrong` unless the rows are the embeddings of `keys`, in the same order."""
        if len(rows) != len(keys):
            raise Wrong(f"{len(rows)} embeddings for {len(keys)} inputs")
        for key, row in zip(keys, rows, strict=True):
            self.check_vector(key, [] if row is None else row)

    def check_hits(self, search: str, hits: Sequence[dict[str, Any]]) -> None:
        """Raise `Wrong` unless the hits equal those that this search had before the load."""
        before = self.hits[search]
        if len(hits) != len(before):
            raise Wrong(f"{len(hits)} hits instead of {len(before)}")
        for rank, (hit, (_, score)) in enumerate(zip(hits, before, strict=True)):
            if abs(hit["score"] - score) > _SCORE:
                raise Wrong(f"hit {rank} has the score {hit['score']:.3f}, not {score:.3f}")
        if hits[0]["id"] not in {image_id for image_id, _ in before}:
            raise Wrong("the hits belong to another search")

    def save(self, file: Path, **figures: float) -> None:
        """Write the embeddings and some named figures to an .npz file."""
        np.savez(file, keys=np.array(self.keys), matrix=self.matrix, **figures)  # type: ignore[arg-type]

    @classmethod
    def load(cls, file: Path) -> tuple[Expected, dict[str, float]]:
        """Read the embeddings and the figures that `save` wrote."""
        with np.load(file) as saved:
            vectors = dict(zip(saved["keys"].tolist(), saved["matrix"], strict=True))
            figures = {name: float(saved[name]) for name in saved if saved[name].ndim == 0}
        return cls(vectors), figures
