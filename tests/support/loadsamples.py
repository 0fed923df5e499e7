"""Samples of a load test without a load: a run that meets every objective, to be spoiled."""

from __future__ import annotations

from dataclasses import dataclass

from loadtests.objectives import Judge, Limits, Objective, Profile, Span
from loadtests.samples import Answer, Asked, Outcome, Samples
from loadtests.shapes import Shape

LIMITS = Limits(p50=10, p95=20, p99=30, busy=0.01, rate=0.8)
PROFILE = Profile(
    times="ms",
    rate=10,
    recovery=1.1,
    interference=4,
    weights={"text": 1, "image": 1},
    objectives={"text": LIMITS, "image": LIMITS},
)


@dataclass
class Observed:
    """Samples of 10 requests per second and kind of user, each answered after 9 ms."""

    shape: Shape

    def __post_init__(self) -> None:
        self.samples = Samples()
        self.spans: list[Span] = []
        now = 1000.0
        for phase in self.shape.phases:
            self.spans.append(Span(phase, now, now + phase.seconds))
            for second in range(int(phase.seconds)):
                for kind in phase.users or ("text", "image"):
                    self.add(kind, now + second, 10)
            now += phase.seconds

    def add(self, user: str, at: float, n: int, ms: float = 9.0, outcome: Outcome = "ok") -> None:
        self.samples.answers += [Answer(at + i / n, user, outcome, ms) for i in range(n)]
        self.samples.asked += [Asked(at + i / n, user, 1) for i in range(n)]

    def drop(self, user: str, start: float, end: float) -> None:
        """Remove the answers to the requests of a user that were sent from `start` to `end`."""
        self.samples.answers = [
            a for a in self.samples.answers if a.user != user or not start <= a.at < end
        ]

    def judge(self) -> Judge:
        return Judge(PROFILE, self.shape, ("text", "image"))

    def objectives(self) -> list[Objective]:
        return self.judge().objectives(self.samples, self.spans)

    def missed(self) -> list[tuple[str, str, str]]:
        """Return the phase, the user and the figure of each missed objective."""
        rows = self.objectives()
        return [(row.phase, row.user, row.figure) for row in rows if not row.met]
