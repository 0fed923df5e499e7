"""The comparison of two services' answers."""

from __future__ import annotations

import pytest

from tests.parity.corpus import CORPUS
from tests.parity.playing import Answer, differences


@pytest.mark.parametrize(
    ("body", "difference"),
    [
        (b'{"a": [1.0, 2.0]}', None),
        (b'{"a": [1.0, 2.0000005]}', None),
        (b'{"a": [1.0, 2.00001]}', r"body.a[1], one has 2.0, other has 2.00001"),
        (b'{"a": [1.0, NaN]}', "body.a[1], one has 2.0, other has nan"),
        (b'{"a": [1.0]}', "body.a, one has [1.0, 2.0], other has [1.0]"),
        (b'{"a": [1.0, 2]}', "body.a[1], one has 2.0, other has 2"),
        (b'{"b": 1}', "body.a, one has [1.0, 2.0], other has 'nothing'"),
        (b'{"a": [1.0, 2.0], "indexed_at": 3}', None),
    ],
)
def test_a_difference_names_the_request_and_both_values(
    body: bytes, difference: str | None
) -> None:
    headers = {"content-type": "application/json"}
    one = [Answer(200, headers, b'{"a": [1.0, 2.0]}')] * len(CORPUS)
    other = [*one[:-2], Answer(200, headers, body), one[-1]]
    found = differences("one", one, "other", other)
    assert found == ([] if difference is None else [f"{CORPUS[-2].name}: {difference}", *found[1:]])


def test_other_statuses_and_headers_are_differences() -> None:
    one = [Answer(200, {"location": "/a"}, b"")] * len(CORPUS)
    status = [Answer(404, {}, b""), *one[1:]]
    assert "status, one has (200" in differences("one", one, "other", status)[0]
    header = [Answer(200, {"location": "/b"}, b""), *one[1:]]
    (difference,) = differences("one", one, "other", header)
    assert difference == f"{CORPUS[0].name}: header location, one has '/a', other has '/b'"
