"""What was observed: every request and its answer, and once a second the generator's CPU time.

In a distributed run workers send theirs to the master, which holds everything.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Outcome = Literal["ok", "busy", "failed", "wrong"]
"""200 and right; 429; any other status or none; 200 with what belongs to another request."""


class Answer(NamedTuple):
    """An answer: when its request was sent (Unix time, s), whose it was, how long it took."""

    at: float
    user: str
    outcome: Outcome
    ms: float


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

    def add(self, user: str, outcome: Outcome, ms: float, problem: str = "") -> None:
        """Take down an answer that has just come."""
        self.answers.append(Answer(time.time() - ms / 1000, user, outcome, ms))
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
