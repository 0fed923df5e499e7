"""The expected answers: an answer to another request is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from loadtests.traffic.bodies import USERS, prepared, searches
from loadtests.traffic.expected import Expected, Wrong
from loadtests.traffic.inputs import TEXTS, pictures
from tests.support.rag.fakes import vector_of

TABLE = Expected(
    {name: vector_of(name.encode()) for name in "abc"}, {"s": [("1", 0.9), ("2", 0.5)]}
)


def between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return a unit vector near `one`, moved a little towards `other`."""
    moved = one + 0.3 * other
    return np.asarray(moved / np.linalg.norm(moved))


def test_the_correct_embedding_passes_in_another_dtype() -> None:
    TABLE.check_vector("a", vector_of(b"a").astype(np.float16).tolist())
    TABLE.check_vectors(["a", "b"], [vector_of(b"a"), vector_of(b"b")])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (vector_of(b"b"), "belongs to another request: 'b'"),
        (between(vector_of(b"a"), vector_of(b"d")), "cosine to the correct embedding is 0.9"),
        (vector_of(b"a") * 2, "norm 2.000"),
        (vector_of(b"a")[:8], "shape"),
        (vector_of(b"a") * math.nan, "norm nan"),
        ([], "shape"),
    ],
)
def test_another_embedding_is_wrong(values: Sequence[float], message: str) -> None:
    with pytest.raises(Wrong, match=message):
        TABLE.check_vector("a", values)


def test_exchanged_embeddings_are_wrong() -> None:
    with pytest.raises(Wrong, match="another request"):
        TABLE.check_vectors(["a", "b"], [vector_of(b"b"), vector_of(b"a")])
    with pytest.raises(Wrong, match="1 embeddings for 2 inputs"):
        TABLE.check_vectors(["a", "b"], [vector_of(b"a")])
    with pytest.raises(Wrong, match="shape"):
        TABLE.check_vectors(["a", "b"], [vector_of(b"a"), None])


def test_the_hits_of_another_search_are_wrong() -> None:
    TABLE.check_hits("s", [{"id": "1", "score": 0.905}, {"id": "2", "score": 0.5}])
    for hits in (
        [{"id": "1", "score": 0.9}],
        [{"id": "1", "score": 0.9}, {"id": "2", "score": 0.4}],
        [{"id": "9", "score": 0.9}, {"id": "2", "score": 0.5}],
    ):
        with pytest.raises(Wrong):
            TABLE.check_hits("s", hits)


def test_a_table_can_be_written_and_read_again(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "table.npz", text_ms=2.5)
    read, figures = Expected.load(tmp_path / "table.npz")
    assert (read.keys, figures) == (TABLE.keys, {"text_ms": 2.5})
    assert (read.matrix == TABLE.matrix).all()


def test_every_request_has_an_expected_answer() -> None:
    vectors = {key: vector_of(key.encode()) for key in (*TEXTS, *pictures())}
    expected = Expected(vectors, {name: [("1", 0.5)] for name in searches()})
    for user in USERS:
        requests = prepared(user, expected, "a model")
        assert len({request.body for request in requests}) == len(requests) > 1
        with pytest.raises((Wrong, KeyError)):
            requests[0].check({})


def test_the_images_have_the_file_sizes_of_thumbnails_to_photographs() -> None:
    sizes = sorted(len(data) for data in pictures().values())
    assert len(set(sizes)) == 24
    assert sizes[0] < 30_000
    assert sizes[-1] > 1_500_000
