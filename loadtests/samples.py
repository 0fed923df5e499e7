"""The samples of a run: its requests, its answers, and the generator's CPU use each second.

In a distributed run, the workers send their samples to the master.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Outcome = Literal["ok", "busy", "failed", "wrong"]
"""ok: the expected status and body; busy: 429; failed: another status, or none; wrong: the answer
belongs to another request."""


class Answer(NamedTuple):
    """The answer to a request, or its absence.

    Attributes:
        at: when the request was sent, in seconds of Unix time.
        user: the kind of the user that sent it.
        ms: the latency in milliseconds.
        status: the HTTP status; 0 if the connection failed or no answer arrived.
    """

    at: float
    user: str
    outcome: Outcome
    ms: float
    status: int = 0


class Usage(NamedTuple):
    """The share of one core that a generator process used during a second."""

    at: float
    process: str
    share: float


class Asked(NamedTuple):
    """Requests that a user sent, or skipped because it was still waiting for an answer."""

    at: float
    user: str
    n: float


@dataclass
class Samples:
    """All samples of a run. The clocks of workers and master may differ by at most 1 s."""

    answers: list[Answer] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)  # how often each failure occurred

    def add(
        self, user: str, outcome: Outcome, ms: float, problem: str = "", status: int = 0
    ) -> None:
        """Record an answer that arrived just now, after `ms` milliseconds."""
        self.answers.append(Answer(time.time() - ms / 1000, user, outcome, ms, status))
        if problem:
            self.problems[f"{user}: {problem}"] += 1

    def within(self, start: float, end: float) -> Iterator[Answer]:
        """Iterate over the answers to the requests that were sent from `start` to `end`."""
        return (answer for answer in self.answers if start <= answer.at < end)

    def ask(self, user: str, n: float = 1, seconds: float = 0) -> None:
        """Record `n` offered requests, spread evenly over the last `seconds`."""
        now, parts = time.time(), math.ceil(n)
        for part in range(parts):
            self.asked.append(Asked(now - seconds * (part + 0.5) / parts, user, n / parts))

    def offered(self, user: str, start: float, end: float) -> float:
        """Return how many requests a kind of user offered from `start` to `end`."""
        return sum(each.n for each in self.asked if each.user == user and start <= each.at < end)

    def take(self) -> dict[str, Any]:
        """Return all samples, for the master, and clear them."""
        taken = {
            "answers": self.answers,
            "asked": self.asked,
            "usages": self.usages,
            "problems": dict(self.problems),
        }
        self.clear()
        return taken

    def clear(self) -> None:
        """Delete all samples."""
        self.answers, self.asked, self.usages = [], [], []
        self.problems = Counter()

    def merge(self, taken: dict[str, Any]) -> None:
        """Add the samples of a worker."""
        self.answers += (Answer(*row) for row in taken["answers"])
        self.asked += (Asked(*row) for row in taken["asked"])
        self.usages += (Usage(*row) for row in taken["usages"])
        self.problems.update(taken["problems"])


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the nearest-rank percentile: the smallest value that `percent` % do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
