"""A run: what was asked for, what was seen, and what that makes of it."""

from __future__ import annotations

import argparse
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from loadtests.objectives import Held, Span, profiles
from loadtests.options import check_profile, shape_of, weights_of
from loadtests.reporting import Report
from loadtests.samples import Samples
from loadtests.traffic import bodies
from loadtests.traffic.deployment import Deployment
from loadtests.traffic.expected import Expected
from loadtests.users import USERS, CheckingUser, RouterUser


class Run:
    """The run of this process: what was asked for, what has been seen so far."""

    def __init__(self) -> None:
        self.samples = Samples()
        self.spans: list[Span] = []
        self.info: dict[str, Any] = {}
        self.complete = False
        self.problem = ""  # why it cannot be run

    def configure(self, options: argparse.Namespace) -> None:
        """Take the options. Raises `SystemExit` when they do not fit each other."""
        self.options = options
        self.profile = profiles()[options.slo_profile]
        self.shape = shape_of(options)
        weights = weights_of(options, router=bool(options.router))
        self.users: dict[str, type[CheckingUser]] = {}
        for user in USERS:
            user.weight = weights[user.kind]
            user.samples = self.samples
            user.paced = user.kind not in self.shape.unpaced
            if user.weight:
                self.users[user.kind] = user
        RouterUser.base = options.router
        figures: dict[str, float] = {}
        self.given: Expected | None = None
        if options.expected:
            self.given, figures = Expected.load(Path(options.expected))
        check_profile(options.slo_profile, measured=bool(figures))
        calibrated = self.profile.times == "calibrated"
        self.unit_ms = figures["text_ms"] + figures["image_ms"] if calibrated else 1.0
        for user in self.users.values():
            user.longest = self.profile.objectives[user.kind].p99 * self.unit_ms / 1000
        self.held = Held(self.profile, self.shape, list(self.users), self.unit_ms)

    def prepare(self, host: str) -> None:
        """Ask the deployment what it is and what it answers, and prepare the requests."""
        searching = bool({"search", "router"} & set(self.users))
        with Deployment(host) as deployment:
            self.info = deployment.info()
            expected = deployment.expected(self.given, with_searches=searching)
        for kind, user in self.users.items():
            user.requests = bodies.prepared(kind, expected, self.info["model_name"])

    def report(self, host: str) -> Report:
        """Judge what was seen."""
        samples, spans, options = self.samples, self.spans, self.options
        facts = {"service": host}
        if self.info:
            facts["service"] += f", {self.info['model_name']} on {self.info['device']}"
        if spans:
            facts["begun"] = f"{datetime.fromtimestamp(spans[0].start, UTC):%Y-%m-%d %H:%M} UTC"
        facts["machine of the generator"] = f"{psutil.cpu_count()} cores, {platform.machine()}"
        if self.profile.times == "calibrated":
            facts["one text and one picture by OpenCLIP, one core"] = f"{self.unit_ms:.3g} ms"
        return Report(
            title=f"shape {options.shape}, profile {options.slo_profile}",
            facts={**facts, **dict(options.fact)},
            objectives=self.held.judge(samples, spans) if self.complete else [],
            samples=samples,
            spans=spans,
            knee=self._knee() if self.shape.climbs and self.complete else "",
            problem=self.problem,
        )

    def _knee(self) -> str:
        """Return the knee in words, and why it is no higher."""
        knee, broken = self.held.climb(self.samples, self.spans)
        found = (
            f"knee: {knee:.3g} requests/s" if knee else "knee: none, the first step was too much"
        )
        return "\n".join([found, *(f"  above it, {objective}" for objective in broken)])
