"""The load generator: python -m benchmarks.support.generator < job.json

It runs the users of the load tests, without locust's runner and statistics.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import ClassVar, Final

import gevent
from gevent.pool import Group
from locust.env import Environment

from benchmarks.support.inputs import TEXTS, UKRAINIAN, photos
from benchmarks.support.load import BULK, Job, Kind, Loaded
from benchmarks.support.mixture import mixture, vanish
from loadtests.samples import Answer, Samples, percentile
from loadtests.shapes import PACE
from loadtests.traffic.bodies import Prepared, posted, upload
from loadtests.users import CheckingUser

_CONNECTIONS: Final = 1000  # at most, in the open loop


class Mixed(CheckingUser):
    """A user with pauses."""

    kind = "mixture"


class Client(CheckingUser):
    """The closed loop: sends its next request as soon as the last is answered, also by a 429."""

    kind = "client"
    paced = False
    patient = False


class Arrivals(Client):
    """The open loop: requests at random moments. Latencies count from these moments."""

    kind = "arrivals"
    rate: ClassVar[float]
    concurrency = _CONNECTIONS

    def on_start(self) -> None:
        super().on_start()
        self._sending = Group()
        self._due = time.perf_counter()

    def send(self, began: float) -> None:
        self._sending.spawn(super().send, self._due)

    def wait_time(self) -> float:
        self._due += random.expovariate(self.rate)
        return max(0.0, self._due - time.perf_counter())

    def on_stop(self) -> None:
        self._sending.join()


def prepared(kind: Kind) -> list[Prepared]:
    """Return the requests of a kind."""
    if kind == "mixture":
        return mixture()
    if kind == "texts":
        return [posted("/embed/texts", {"texts": [text]}) for text in TEXTS]
    if kind in ("text", "ukrainian"):
        texts = TEXTS if kind == "text" else UKRAINIAN
        return [posted("/embed/text", {"text": text}) for text in texts]
    pictures = photos(BULK)
    if kind == "image":
        return [upload("/embed/image/upload", "file", [photo]) for photo in pictures]
    lists = [pictures] if kind == "bulk" else [[photo] for photo in pictures]
    return [upload("/embed/images", "files", each) for each in lists]


def run(job: Job) -> Loaded:
    """Send the requests of a job, wait for every answer, and return the figures."""
    random.seed(0)
    samples = CheckingUser.samples = Samples()
    CheckingUser.requests = prepared(job.kind)
    CheckingUser.host = f"http://127.0.0.1:{job.port}"
    users = _users(job)
    gc.freeze()  # keeps collections short
    group, cpu_began, start = Group(), time.process_time(), time.time() + job.warm_up
    for user in users:
        user.start(group)
    if job.kind == "mixture":
        gevent.spawn(vanish, job.port)
    gevent.sleep(start + job.seconds - time.time())
    for user in users:
        user.stop()
    group.join()  # a request takes `network_timeout` at most
    return _summary(job, start, samples, time.process_time() - cpu_began)


def _users(job: Job) -> list[CheckingUser]:
    environment = Environment()
    if job.kind == "mixture":
        assert job.rate
        return [Mixed(environment) for _ in range(round(job.rate / PACE))]
    if job.rate:
        Arrivals.rate = job.rate
        return [Arrivals(environment)]
    return [Client(environment) for _ in range(job.clients)]


def _summary(job: Job, start: float, samples: Samples, cpu_seconds: float) -> Loaded:
    answers, end = samples.answers, start + job.seconds
    measured = [answer for answer in answers if _ended(answer) >= start]
    statuses = Counter(answer.status for answer in measured)
    problems = samples.problems
    if not job.busy_allowed and (busy := sum(each.outcome == "busy" for each in answers)):
        problems["answered 429"] = busy
    return Loaded(
        rate=sum(each.outcome == "ok" and _ended(each) < end for each in measured) / job.seconds,
        statuses={str(status): n for status, n in sorted(statuses.items()) if status},
        errors=statuses[0],
        failures=problems.total(),
        requests=len(answers),
        problems=dict(problems),
        latency=_latency(each.ms for each in measured if each.outcome == "ok"),
        busy_latency=_latency(each.ms for each in measured if each.outcome == "busy"),
        cpu_ms=1000 * cpu_seconds / max(1, len(answers)),
    )


def _ended(answer: Answer) -> float:
    return answer.at + answer.ms / 1000


def _latency(values: Iterable[float]) -> dict[str, float] | None:
    took = list(values)
    if not took:
        return None
    return {**{f"p{each}": percentile(took, each) for each in (50, 95, 99)}, "max": max(took)}


def main() -> None:
    loaded = run(Job(**json.load(sys.stdin)))
    print(json.dumps(asdict(loaded)))


if __name__ == "__main__":
    main()
