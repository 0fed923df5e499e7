"""The pace predicts how long batches take from those that ran."""

from __future__ import annotations

import pytest

from bento.runners.pace import Pace


def test_pace_fits_a_line() -> None:
    pace = Pace()
    for size in (1, 8, 3, 32, 16, 2):
        pace.observe(size, 0.02 + 0.003 * size)
    assert pace.per_unit == pytest.approx(0.003)
    assert pace.per_batch == pytest.approx(0.02)
    assert pace.seconds(10) == pytest.approx(0.05)
    assert pace.seconds(20, batches=2) == pytest.approx(0.1)


def test_pace_keeps_the_best_pace_and_the_usual_size() -> None:
    pace = Pace()
    assert pace.usual_size == 0
    for size, seconds in ((4, 1.0), (10, 2.0), (10, 8.0)):
        pace.observe(size, seconds)
    assert pace.best == pytest.approx(0.2)
    assert pace.usual_size == pytest.approx((0.81 * 4 + 0.9 * 10 + 10) / 2.71)


def test_pace_forgets_old_batches() -> None:
    pace = Pace()
    for _ in range(50):
        pace.observe(4, 1.0)
    for size in (1, 2, 3, 4) * 20:
        pace.observe(size, 0.1 * size)
    assert pace.per_unit == pytest.approx(0.1, rel=0.05)


def test_pace_divides_batches_of_one_size_by_their_size() -> None:
    pace = Pace()
    for _ in range(5):
        pace.observe(8, 0.4)
    assert pace.seconds(8) == pytest.approx(0.4)
    assert pace.seconds(16) == pytest.approx(0.8)


def test_pace_never_predicts_that_more_work_takes_less_time() -> None:
    pace = Pace()
    for size, seconds in ((1, 2.0), (10, 1.0), (20, 0.5)):
        pace.observe(size, seconds)
    assert pace.per_unit >= 0
    assert pace.per_batch >= 0
    assert pace.seconds(20) >= pace.seconds(1)
