"""The observations of a run: each request, each answer, the generator's CPU time each second.

In a distributed run the workers send theirs to the master.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Outcome = Literal["ok", "busy", "failed", "wrong"]
"""The expected status and body; 429; another status or none; the answer to another request."""


class Answer(NamedTuple):
    """An answer, or the lack of one.

    Attributes:
        at: when the request was sent, in seconds of Unix time.
        user: the kind of the user that sent it.
        ms: how long the answer took.
        status: of HTTP; 0 when the connection failed or no answer came.
    """

    at: float
    user: str
    outcome: Outcome
    ms: float
    status: int = 0


class Usage(NamedTuple):
    """The share of one core that a process of the generator took over a second."""

    at: float
    process: str
    share: float


class Asked(NamedTuple):
    """Requests that a user has sent, or had to leave out because it waited for an answer."""

    at: float
    user: str
    n: float


@dataclass
class Samples:
    """Everything that was observed. Workers' clocks must agree with the master's to a second."""

    answers: list[Answer] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)  # what was said of failed and wrong

    def add(
        self, user: str, outcome: Outcome, ms: float, problem: str = "", status: int = 0
    ) -> None:
        """Record an answer that has just arrived."""
        self.answers.append(Answer(time.time() - ms / 1000, user, outcome, ms, status))
        if problem:
            self.problems[f"{user}: {problem}"] += 1

    def within(self, start: float, end: float) -> Iterator[Answer]:
        """Iterate over the answers to what was sent in a span of time."""
        return (answer for answer in self.answers if start <= answer.at < end)

    def ask(self, user: str, n: float = 1, seconds: float = 0) -> None:
        """Take down that a request is sent, or that `n` were due over the seconds until now."""
        now, parts = time.time(), math.ceil(n)
        for part in range(parts):
            self.asked.append(Asked(now - seconds * (part + 0.5) / parts, user, n / parts))

    def offered(self, user: str, start: float, end: float) -> float:
        """Return how many requests a kind of user offered in a span of time."""
        return sum(each.n for each in self.asked if each.user == user and start <= each.at < end)

    def take(self) -> dict[str, Any]:
        """Return everything, to be sent to the master, and forget it."""
        taken = {
            "answers": self.answers,
            "asked": self.asked,
            "usages": self.usages,
            "problems": dict(self.problems),
        }
        self.clear()
        return taken

    def clear(self) -> None:
        """Forget everything."""
        self.answers, self.asked, self.usages = [], [], []
        self.problems = Counter()

    def merge(self, taken: dict[str, Any]) -> None:
        """Add what a worker has sent."""
        self.answers += (Answer(*row) for row in taken["answers"])
        self.asked += (Asked(*row) for row in taken["asked"])
        self.usages += (Usage(*row) for row in taken["usages"])
        self.problems.update(taken["problems"])


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest value that `percent` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
