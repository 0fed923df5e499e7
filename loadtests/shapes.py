"""Load shapes: how the load changes over time, as a list of phases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

HeldTo = Literal["all", "answers", "nothing"]

PACE: Final = 0.5
"""Requests per second of one user. The offered rate is this times the number of users."""

BULK_CLIENTS: Final = 16
"""How many users of the shape `mixed` send texts, at PACE. As many send images without pauses."""

_STEP: Final = 1.25
_STEPS: Final = 24


@dataclass(frozen=True)
class Phase:
    """A time with a constant load.

    Attributes:
        rate: the rate that all users together offer, in requests per second.
        users: the kinds of users that run; empty for all.
        held_to: which objectives apply: `all`; `answers`, only that answers come and none fails;
            or `nothing`.
    """

    name: str
    seconds: float
    rate: float
    users: tuple[str, ...] = ()
    held_to: HeldTo = "all"


@dataclass(frozen=True)
class Comparison:
    """The ratio of a percentile in the phase `after` to the one in the phase `before`.

    Attributes:
        limit: the field of the profile that limits the ratio.
        user: the kind of user whose latencies count; empty for all.
    """

    limit: Literal["recovery", "interference"]
    percentile: Literal["p50", "p95"]
    before: str
    after: str
    user: str = ""


@dataclass(frozen=True)
class Shape:
    """Phases, and a comparison between two of them.

    Attributes:
        unpaced: the kinds of users that send the next request right after an answer.
        climbs: whether the rate climbs until a phase misses an objective, which ends the run.
    """

    phases: tuple[Phase, ...]
    compared: Comparison | None = None
    unpaced: tuple[str, ...] = ()
    climbs: bool = False


def steady(rate: float, seconds: float) -> Shape:
    """Hold a constant rate."""
    return Shape((Phase("steady", seconds, rate),))


def ramp(rate: float, seconds: float) -> Shape:
    """Climb from half the rate by a factor of 1.25 until a step misses an objective."""
    rates = [rate / 2 * _STEP**n for n in range(_STEPS)]
    phases = tuple(Phase(f"{each:.3g}/s", seconds / 6, each) for each in rates)
    return Shape(phases, climbs=True)


def spike(rate: float, seconds: float) -> Shape:
    """Offer ten times the rate for a third of the time; the latency must recover afterwards."""
    phases = (
        Phase("before", seconds / 3, rate),
        Phase("10 times", seconds / 3, 10 * rate, held_to="answers"),
        Phase("settling", seconds / 6, rate, held_to="nothing"),
        Phase("after", seconds / 3, rate),
    )
    return Shape(phases, Comparison("recovery", "p50", "before", "after"))


def soak(rate: float, seconds: float) -> Shape:
    """Hold a constant rate for long; the latency must not rise towards the end."""
    phases = (
        Phase("first quarter", seconds / 4, rate),
        Phase("second and third", seconds / 2, rate),
        Phase("last quarter", seconds / 4, rate),
    )
    return Shape(phases, Comparison("recovery", "p50", "first quarter", "last quarter"))


def mixed(_: float, seconds: float) -> Shape:
    """Send texts alone, then beside unpaced users with images. The rate is fixed."""
    texts = BULK_CLIENTS * PACE
    phases = (
        Phase("texts alone", seconds / 2, texts, ("text",)),
        Phase("beside bulk", seconds / 2, 2 * texts, ("text", "image"), held_to="answers"),
    )
    compared = Comparison("interference", "p95", "texts alone", "beside bulk", "text")
    return Shape(phases, compared, unpaced=("image",))


SHAPES: Final[dict[str, Callable[[float, float], Shape]]] = {
    "steady": steady,
    "ramp": ramp,
    "spike": spike,
    "soak": soak,
    "mixed": mixed,
}
