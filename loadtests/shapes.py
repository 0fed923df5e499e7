"""How the load goes over time: each shape is a list of phases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

HeldTo = Literal["all", "answers", "nothing"]

PACE: Final = 0.5
"""Requests a second of one user; so many users times this is the rate that is offered."""

BULK_CLIENTS: Final = 16
"""Of the shape `mixed`: so many clients send texts at their pace, so many pictures without one."""

_STEP: Final = 1.25
_STEPS: Final = 24


@dataclass(frozen=True)
class Phase:
    """A span of time with the same load.

    Attributes:
        rate: requests a second that all users together offer.
        users: of these kinds only; empty: of all.
        held_to: every objective; that all is answered and right; or nothing.
    """

    name: str
    seconds: float
    rate: float
    users: tuple[str, ...] = ()
    held_to: HeldTo = "all"


@dataclass(frozen=True)
class Comparison:
    """A percentile in a later phase over that in an earlier one.

    Attributes:
        limit: the profile's field that it may not exceed.
        user: of that kind's requests; empty: of all.
    """

    limit: Literal["recovery", "interference"]
    percentile: Literal["p50", "p95"]
    before: str
    after: str
    user: str = ""


@dataclass(frozen=True)
class Shape:
    """Phases, and what is compared between them.

    Attributes:
        unpaced: the kinds whose users do not pause.
        climbs: the phases are steps, and the first that breaks an objective is the last.
    """

    phases: tuple[Phase, ...]
    compared: Comparison | None = None
    unpaced: tuple[str, ...] = ()
    climbs: bool = False


def steady(rate: float, seconds: float) -> Shape:
    """The same rate all the time."""
    return Shape((Phase("steady", seconds, rate),))


def ramp(rate: float, seconds: float) -> Shape:
    """Steps of 1.25 from half the rate, until one breaks an objective: the knee is before it."""
    rates = [rate / 2 * _STEP**n for n in range(_STEPS)]
    phases = tuple(Phase(f"{each:.3g}/s", seconds / 6, each) for each in rates)
    return Shape(phases, climbs=True)


def spike(rate: float, seconds: float) -> Shape:
    """The rate, ten times as much, the rate: the latency must come back."""
    phases = (
        Phase("before", seconds / 3, rate),
        Phase("10 times", seconds / 3, 10 * rate, held_to="answers"),
        Phase("settling", seconds / 6, rate, held_to="nothing"),
        Phase("after", seconds / 3, rate),
    )
    return Shape(phases, Comparison("recovery", "p50", "before", "after"))


def soak(rate: float, seconds: float) -> Shape:
    """The same rate for long: the end must be as quick as the beginning."""
    phases = (
        Phase("first quarter", seconds / 4, rate),
        Phase("second and third", seconds / 2, rate),
        Phase("last quarter", seconds / 4, rate),
    )
    return Shape(phases, Comparison("recovery", "p50", "first quarter", "last quarter"))


def mixed(_: float, seconds: float) -> Shape:
    """Texts alone, then beside clients that send pictures without a pause, whatever the rate."""
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
