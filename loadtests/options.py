"""The options of a run that `python -m loadtests` and locust both read."""

from __future__ import annotations

import argparse
from typing import Any

from loadtests.objectives import profiles
from loadtests.shapes import SHAPES, Shape
from loadtests.traffic import bodies


def add_options(group: Any) -> None:
    """Add the shape, the rate, the seconds and the weights to a parser, or a group of one."""
    group.add_argument("--shape", choices=list(SHAPES), default="steady", help="of the load")
    group.add_argument("--rate", type=_positive, help="requests/s (default: the profile's)")
    group.add_argument("--seconds", type=_positive, default=60.0, help="how long (default: 60)")
    group.add_argument(
        "--weights",
        type=_weights,
        default={},
        metavar="USER=N,…",
        help=f"instead of the profile's: {', '.join(bodies.USERS)}",
    )


def shape_of(options: argparse.Namespace) -> Shape:
    """Return the shape, at the rate that was asked for or the profile's."""
    rate = options.rate or profiles()[options.slo_profile].rate
    return SHAPES[options.shape](rate, options.seconds)


def weights_of(options: argparse.Namespace, *, router: bool) -> dict[str, int]:
    """Return of how many requests each user's are. Raises `SystemExit` when no user is left."""
    weights = {**profiles()[options.slo_profile].weights, **options.weights}
    if not router:
        weights["router"] = 0
    if chosen := {kind for phase in shape_of(options).phases for kind in phase.users}:
        weights = {kind: int(kind in chosen) for kind in weights}
    if not any(weights.values()):
        raise SystemExit("the weights leave no user")
    return weights


def check_profile(name: str, *, measured: bool) -> None:
    """Raise `SystemExit` when a profile is relative to a machine that is not measured."""
    if profiles()[name].times == "calibrated" and not measured:
        raise SystemExit(
            f"the profile {name} is relative to this machine, where the service is started by "
            "`python -m loadtests`; --slo-profile cpu or gpu is for a deployment"
        )


def _weights(text: str) -> dict[str, int]:
    weights = {}
    for part in filter(None, text.split(",")):
        kind, _, weight = part.partition("=")
        if kind not in bodies.USERS or not weight.isdecimal():
            allowed = ", ".join(bodies.USERS)
            raise argparse.ArgumentTypeError(f"{part!r} is not USER=NUMBER with one of {allowed}")
        weights[kind] = int(weight)
    return weights


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
