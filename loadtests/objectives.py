"""The objectives of a run, from slo.yaml, and whether a run meets them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from loadtests.samples import Answer, Samples, percentile
from loadtests.shapes import Phase, Shape

FILE: Final = Path(__file__).with_name("slo.yaml")
_PERCENTILES: Final = {"p50": 50.0, "p95": 95.0, "p99": 99.0}
_WARMUP_SECONDS: Final = 2.0  # at the start of a phase, while its users start; not judged

Time = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Read(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Read):
    """The limits of one user: latencies of its correct answers, and shares of its requests."""

    p50: Time
    p95: Time
    p99: Time
    failed: Share = 0.0
    busy: Share
    rate: Share = Field(description="correct answers as a share of the offered requests")


class Profile(_Read):
    """A profile of slo.yaml, whose comments explain the fields."""

    times: Literal["ms", "calibrated"]
    rate: Annotated[float, Field(gt=0)]
    recovery: Annotated[float, Field(gt=1)]
    interference: Annotated[float, Field(gt=1)]
    weights: dict[str, Annotated[int, Field(ge=0)]]
    objectives: dict[str, Limits]


def profiles() -> dict[str, Profile]:
    """Read the profiles of slo.yaml, by name."""
    read = yaml.safe_load(FILE.read_text())
    return {name: Profile.model_validate(profile) for name, profile in read.items()}


@dataclass(frozen=True)
class Objective:
    """A figure and its limit: an upper one, or a lower one if `at_least` is true."""

    phase: str
    user: str
    figure: str
    value: float
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        phase = f" ({self.phase})" if self.phase else ""
        bound = "at least" if self.at_least else "at most"
        value, limit = shown(self.value, self.unit), shown(self.limit, self.unit)
        return f"{self.user} {self.figure}{phase}: {value}; the objective is {bound} {limit}"


@dataclass(frozen=True)
class Span:
    """The start and the end of a phase, in seconds of Unix time."""

    phase: Phase
    start: float
    end: float


@dataclass(frozen=True)
class Judge:
    """Compare the samples of a run with the limits of a profile.

    Args:
        kinds: the kinds of users that run.
        unit_ms: the factor that turns a time of the profile into milliseconds.
    """

    profile: Profile
    shape: Shape
    kinds: Sequence[str]
    unit_ms: float = 1.0

    def objectives(self, samples: Samples, spans: Sequence[Span]) -> list[Objective]:
        """Return every objective of a complete run."""
        if self.shape.climbs:
            return self._judge_climb(samples, spans)
        several = len(self.shape.phases) > 1
        rows = [
            row
            for span in spans
            for row in self._judge_phase(samples, span, span.phase.name if several else "")
        ]
        return rows + self._compare(samples, spans) + self._wrong(samples)

    def climb(self, samples: Samples, spans: Sequence[Span]) -> tuple[float, list[Objective]]:
        """Return the knee and the objectives that the step above it missed.

        The knee is the highest rate at which every step met its objectives, 0 if the first step
        missed one. The list is empty if no step did.
        """
        knee = 0.0
        for span in spans:
            if missed := [row for row in self._judge_step(samples, span) if not row.met]:
                return knee, missed
            knee = span.phase.rate
        return knee, []

    def _judge_phase(self, samples: Samples, span: Span, name: str) -> list[Objective]:
        if span.phase.held_to == "nothing":
            return []
        start = min(span.start + _WARMUP_SECONDS, span.end)
        answers = list(samples.within(start, span.end))
        rows = []
        for kind in span.phase.users or self.kinds:
            own = [answer for answer in answers if answer.user == kind]
            rows += self._answers(name, kind, own)
            if span.phase.held_to == "all":
                rows += self._figures(name, kind, own, _PERCENTILES)
                rate = sum(a.outcome == "ok" for a in own) / max(1e-9, span.end - start)
                limit = self._least(samples, kind, start, span.end)
                rows.append(Objective(name, kind, "rate", rate, limit, "/s", at_least=True))
        return rows

    def _judge_step(self, samples: Samples, span: Span) -> list[Objective]:
        """Return the objectives of a step: every p95, no failure, and the rate of all users.

        A step is too short to judge a p99, or the rate of a kind with few users.
        """
        start, name = min(span.start + _WARMUP_SECONDS, span.end), span.phase.name
        answers = list(samples.within(start, span.end))
        rows, least = [], 0.0
        for kind in self.kinds:
            own = [answer for answer in answers if answer.user == kind]
            least += self._least(samples, kind, start, span.end)
            if samples.offered(kind, start, span.end):  # with few users, a kind may have none
                wrong = sum(answer.outcome == "wrong" for answer in own)
                rows.append(Objective(name, kind, "wrong", wrong, 0))
                rows += self._answers(name, kind, own)
                rows += self._figures(name, kind, own, ("p95",))
        rate = sum(answer.outcome == "ok" for answer in answers) / max(1e-9, span.end - start)
        return [*rows, Objective(name, "all", "rate", rate, least, "/s", at_least=True)]

    def _least(self, samples: Samples, kind: str, start: float, end: float) -> float:
        """Return the lowest rate of correct answers that is allowed for the offered rate."""
        offered = samples.offered(kind, start, end) / max(1e-9, end - start)
        return self.profile.objectives[kind].rate * offered

    def _answers(self, phase: str, kind: str, own: Sequence[Answer]) -> list[Objective]:
        """Return the limit of failures, and at least one correct answer if there is none."""
        outcomes = Counter(answer.outcome for answer in own)
        count = max(1, len(own))
        failed = self.profile.objectives[kind].failed
        rows = [Objective(phase, kind, "failed", outcomes["failed"] / count, failed, "%")]
        if not outcomes["ok"]:
            rows.append(Objective(phase, kind, "correct answers", 0, 1, at_least=True))
        return rows

    def _figures(
        self, phase: str, kind: str, own: Sequence[Answer], percentiles: Iterable[str]
    ) -> list[Objective]:
        limits = self.profile.objectives[kind]
        busy = sum(answer.outcome == "busy" for answer in own) / max(1, len(own))
        rows = [Objective(phase, kind, "answered 429", busy, limits.busy, "%")]
        if any(answer.outcome == "ok" for answer in own):
            for name in percentiles:
                limit = getattr(limits, name) * self.unit_ms
                rows.append(Objective(phase, kind, name, latency(own, name), limit, "ms"))
        return rows

    def _compare(self, samples: Samples, spans: Sequence[Span]) -> list[Objective]:
        compared = self.shape.compared
        if compared is None:
            return []
        of = {span.phase.name: samples.within(span.start, span.end) for span in spans}
        before, after = (
            latency((a for a in of[name] if compared.user in ("", a.user)), compared.percentile)
            for name in (compared.before, compared.after)
        )
        figure = f"{compared.percentile} {compared.after} / {compared.before}"
        limit = getattr(self.profile, compared.limit)
        return [Objective("", compared.user or "all", figure, after / before, limit, "times")]

    def _judge_climb(self, samples: Samples, spans: Sequence[Span]) -> list[Objective]:
        """Return two objectives: a knee not below the profile's rate, and no wrong answer."""
        knee, _ = self.climb(samples, spans)
        row = Objective("", "all", "knee", knee, self.profile.rate, "/s", at_least=True)
        return [row, *self._wrong(samples)]

    def _wrong(self, samples: Samples) -> list[Objective]:
        """Count the answers that belong to other requests, also those outside all phases."""
        wrong = Counter(answer.user for answer in samples.answers if answer.outcome == "wrong")
        return [Objective("", kind, "wrong", wrong[kind], 0) for kind in self.kinds]


def latency(answers: Iterable[Answer], name: str) -> float:
    """Return a percentile of the latencies of correct answers, in ms; NaN if there are none."""
    correct = [answer.ms for answer in answers if answer.outcome == "ok"]
    return percentile(correct, _PERCENTILES[name]) if correct else math.nan


def shown(value: float, unit: str) -> str:
    """Format a figure with three digits and its unit. For the unit %, 1.0 is 100 %."""
    if unit == "%":
        return f"{100 * value:.3g} %"
    number = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{number}{unit if unit == '/s' else f' {unit}' if unit else ''}"
