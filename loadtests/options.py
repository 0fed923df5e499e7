"""The options that `python -m loadtests` and locust share."""

from __future__ import annotations

import argparse
from typing import Any

from loadtests.objectives import profiles
from loadtests.shapes import SHAPES, Shape
from loadtests.traffic import bodies


def add_options(group: Any) -> None:
    """Add --shape, --rate, --seconds and --weights to a parser or an argument group."""
    group.add_argument("--shape", choices=list(SHAPES), default="steady", help="default: steady")
    group.add_argument("--rate", type=_positive, help="requests/s (default: the profile's)")
    group.add_argument("--seconds", type=_positive, default=60.0, help="duration (default: 60)")
    group.add_argument(
        "--weights",
        type=_weights,
        default={},
        metavar="USER=N,…",
        help=f"share of each user's requests (default: the profile's): {', '.join(bodies.USERS)}",
    )


def shape_of(options: argparse.Namespace) -> Shape:
    """Return the shape with the given rate, or else the profile's."""
    rate = options.rate or profiles()[options.slo_profile].rate
    return SHAPES[options.shape](rate, options.seconds)


def weights_of(options: argparse.Namespace, *, router: bool) -> dict[str, int]:
    """Return the weight of each user. Raises `SystemExit` if all are 0."""
    weights = {**profiles()[options.slo_profile].weights, **options.weights}
    if not router:
        weights["router"] = 0
    if chosen := {kind for phase in shape_of(options).phases for kind in phase.users}:
        weights = {kind: int(kind in chosen) for kind in weights}
    if not any(weights.values()):
        raise SystemExit("all weights are 0; give at least one user a weight above 0")
    return weights


def check_profile(name: str, *, measured: bool) -> None:
    """Raise `SystemExit` if a profile needs the times of a machine that was not measured."""
    if profiles()[name].times == "calibrated" and not measured:
        raise SystemExit(
            f"the profile {name} works only if `python -m loadtests` starts the service on this "
            "machine; for a deployment use --slo-profile cpu or gpu"
        )


def _weights(text: str) -> dict[str, int]:
    weights = {}
    for part in filter(None, text.split(",")):
        kind, _, weight = part.partition("=")
        if kind not in bodies.USERS or not weight.isdecimal():
            allowed = ", ".join(bodies.USERS)
            raise argparse.ArgumentTypeError(
                f"{part!r} is not USER=NUMBER; the users are {allowed}"
            )
        weights[kind] = int(weight)
    return weights


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number
