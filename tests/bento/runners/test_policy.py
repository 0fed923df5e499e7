"""The choice of the items of the next batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento.runners.policy import (
    Limits,
    count_limit,
    lane_share,
    ready_lanes,
    split_late,
    whole_steps,
)


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        (Limits(32), 32),
        (Limits(32, lanes=2), 16),
        (Limits(33, lanes=2), 17),
        (Limits(32, step=4, lanes=16), 8),  # at least 2 steps
        (Limits(3, step=4, lanes=16), 3),  # but never more than allowed
    ],
)
def test_a_lane_has_its_share_of_the_limit(limits: Limits, most: int) -> None:
    assert limits.most == most


@pytest.mark.parametrize(
    ("count", "rounded"), [(0, 0), (7, 7), (8, 8), (11, 8), (12, 12), (21, 20), (22, 22)]
)
def test_a_batch_is_rounded_down_to_whole_steps(count: int, rounded: int) -> None:
    assert whole_steps(count, Limits(22, step=4)) == rounded


@pytest.mark.parametrize(
    ("limits", "most", "item_seconds", "count"),
    [
        (Limits(32, seconds=0.5), 32, math.inf, 32),  # no batch has run yet
        (Limits(32, seconds=0.5), 32, 0.01, 32),
        (Limits(32, seconds=0.5), 32, 0.02, 25),
        (Limits(32, seconds=0.5, step=4), 32, 0.02, 24),
        (Limits(64, seconds=0.5, lanes=2), 32, 0.01, 25),  # on a lane it takes twice as long
        (Limits(32, seconds=0.5), 32, 9.0, 1),  # a batch has at least one item
        (Limits(32, seconds=0.5), 2, 0.02, 2),  # the limit is lowered after out-of-memory
        (Limits(32), 32, 9.0, 32),
    ],
)
def test_a_batch_stays_within_its_time_limit(
    limits: Limits, most: int, item_seconds: float, count: int
) -> None:
    assert count_limit(limits, most, item_seconds) == count


@pytest.mark.parametrize(
    ("waiting", "in_flight", "share"),
    [
        (6, 0, 2),
        (21, 0, 7),
        (32, 0, 12),  # a third, rounded up to whole steps
        (20, 12, 12),
        (1, 20, 1),  # at most the waiting items
    ],
)
def test_lanes_leave_one_share_in_the_queue(waiting: int, in_flight: int, share: int) -> None:
    assert lane_share(Limits(32, step=4, lanes=2), waiting, in_flight) == share


@pytest.mark.parametrize(
    ("busy", "waiting", "ready"),
    [
        ([False], 0, []),
        ([False], 1, [0]),
        ([True], 1, []),
        ([False, False, False], 0, []),
        ([False, False, False], 1, [0]),  # fewer items than lanes: the whole tower
        ([False, False, False], 2, [1, 2]),
        ([True, False, False], 9, []),  # a batch on the whole tower runs alone
        ([False, True, False], 1, [2]),
        ([False, True, True], 9, []),
    ],
)
def test_a_free_lane_takes_the_next_batch(busy: list[bool], waiting: int, ready: list[int]) -> None:
    assert ready_lanes(busy, waiting) == ready


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 10))
def test_the_whole_tower_and_a_lane_are_never_ready_together(
    busy: list[bool], waiting: int
) -> None:
    ready = ready_lanes(busy, waiting)
    assert ready == [0] or 0 not in ready
    assert not any(busy[lane] for lane in ready)
    if waiting and not any(busy):
        assert ready  # an idle tower never waits


@dataclass
class Item:
    deadline: float


def test_items_that_would_miss_their_deadline_are_late() -> None:
    items = [Item(3.0), Item(math.inf), Item(2.9), Item(8.0)]
    late, in_time = split_late(items, 3.0)
    assert late == [items[2]]
    assert in_time == [items[0], items[1], items[3]]
