"""The state of a run: its options, its samples and its report."""

from __future__ import annotations

import argparse
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from loadtests.objectives import Judge, Span, profiles
from loadtests.options import check_profile, shape_of, weights_of
from loadtests.reporting import Report
from loadtests.samples import Samples
from loadtests.traffic import bodies
from loadtests.traffic.deployment import Deployment
from loadtests.traffic.expected import Expected
from loadtests.users import USERS, CheckingUser, RouterUser


class Run:
    """The options of a run, and the samples that this process has so far."""

    def __init__(self) -> None:
        self.samples = Samples()
        self.spans: list[Span] = []
        self.info: dict[str, Any] = {}
        self.complete = False
        self.problem = ""  # why the run cannot go on

    def configure(self, options: argparse.Namespace) -> None:
        """Apply the options. Raises `SystemExit` if they contradict each other."""
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
        self.judge = Judge(self.profile, self.shape, list(self.users), self.unit_ms)

    def prepare(self, host: str) -> None:
        """Query the deployment for its model and the expected answers, and prepare the requests."""
        searching = bool({"search", "router"} & set(self.users))
        with Deployment(host) as deployment:
            self.info = deployment.info()
            expected = deployment.expected(self.given, with_searches=searching)
        for kind, user in self.users.items():
            user.requests = bodies.prepared(kind, expected, self.info["model_name"])

    def report(self, host: str) -> Report:
        """Judge the samples."""
        samples, spans, options = self.samples, self.spans, self.options
        facts = {"service": host}
        if self.info:
            facts["service"] += f", {self.info['model_name']} on {self.info['device']}"
        if spans:
            facts["start"] = f"{datetime.fromtimestamp(spans[0].start, UTC):%Y-%m-%d %H:%M} UTC"
        facts["machine of the load generator"] = f"{psutil.cpu_count()} cores, {platform.machine()}"
        if self.profile.times == "calibrated":
            facts["one text plus one image with OpenCLIP on one core"] = f"{self.unit_ms:.3g} ms"
        return Report(
            title=f"shape {options.shape}, profile {options.slo_profile}",
            facts={**facts, **dict(options.fact)},
            objectives=self.judge.objectives(samples, spans) if self.complete else [],
            samples=samples,
            spans=spans,
            knee=self._knee() if self.shape.climbs and self.complete else "",
            problem=self.problem,
        )

    def _knee(self) -> str:
        """Return the knee as text, with the objectives that the step above it missed."""
        knee, missed = self.judge.climb(self.samples, self.spans)
        found = f"{knee:.3g} requests/s" if knee else "none, the first step missed an objective"
        return "\n".join([f"knee: {found}", *(f"  above it: {objective}" for objective in missed)])
