"""The users: each sends its prepared requests at its own pace and checks every answer."""

from __future__ import annotations

import math
import random
import time
from typing import Any, ClassVar, Final

import gevent
import orjson
from locust import FastHttpUser, task
from locust.exception import StopUser

from loadtests.samples import Outcome, Samples
from loadtests.shapes import PACE
from loadtests.traffic.bodies import Prepared
from loadtests.traffic.deployment import keys
from loadtests.traffic.expected import Wrong

_LATE_SECONDS: Final = 1.0  # a request that is later than this is skipped
_PATIENCE_SECONDS: Final = 15.0  # a request may wait 10 s in the service's queue (MAX_QUEUE_MS)
_EXCERPT: Final = 160  # characters of an error message


class CheckingUser(FastHttpUser):
    """A user that knows the correct answer to each of its requests."""

    abstract = True
    kind: ClassVar[str]
    requests: ClassVar[list[Prepared]] = []  # `Run` sets this and the following before a run
    samples: ClassVar[Samples]
    base: ClassVar[str] = ""  # replaces the host of the run
    paced: ClassVar[bool] = True  # False: send the next request right after an answer
    longest: ClassVar[float] = 0.0  # the objective for the p99, in seconds
    clock = staticmethod(time.perf_counter)

    connection_timeout = 10.0
    network_timeout = 70.0  # the service ends a request after 60 s

    _due = math.inf

    def on_start(self) -> None:
        """Start after a random delay and with a random request, unlike the other users."""
        if not self.requests:
            raise StopUser  # the deployment is unusable, and the run is about to end
        self._order = random.sample(self.requests, len(self.requests))
        self._turn = 0
        self._keys = keys()
        self._due = self.clock() + random.random() / PACE
        if self.paced:
            gevent.sleep(self._due - self.clock())

    def wait_time(self) -> float:
        """Return the seconds until the next request, independent of the last answer's latency."""
        if not self.paced:
            return 0.0
        self._miss()
        self._due += random.uniform(0.5, 1.5) / PACE
        return max(0.0, self._due - self.clock())

    def on_stop(self) -> None:
        """Record the requests that were skipped while the last answer was outstanding."""
        if self.paced:
            self._miss()

    def _miss(self) -> None:
        """Record as offered the requests that are too late to be sent."""
        if (late := self.clock() - _LATE_SECONDS - self._due) > 0:
            self.samples.ask(self.kind, late * PACE, late)
            self._due += late

    @task
    def ask(self) -> None:
        """Send the next request."""
        request = self._order[self._turn % len(self._order)]
        self._turn += 1
        self.samples.ask(self.kind)
        started = self.clock()
        try:
            answer = self.client.request(
                "POST",
                self.base + request.route,
                name=self.kind,
                data=request.body,  # type: ignore[arg-type]  # locust sends bytes unchanged
                headers={"Content-Type": request.content_type, **self._keys},
                catch_response=True,
            )
        except gevent.GreenletExit:
            self._give_up(request, self.clock() - started)
            raise
        with answer as response:
            outcome, problem, pause = self._judge(request, response)
            if outcome == "ok":
                response.success()
            elif outcome == "busy":
                response.request_meta["name"] = f"{self.kind}, answered 429"
                response.success()
            else:
                response.failure(problem)
            ms = response.request_meta["response_time"]
        self.samples.add(self.kind, outcome, ms, problem)
        if pause:
            gevent.sleep(pause)

    def _give_up(self, request: Prepared, seconds: float) -> None:
        """Record a request without an answer at the end of the run, if it is overdue."""
        if seconds > max(_PATIENCE_SECONDS, self.longest):
            problem = f"{request.route} had no answer at the end of the run"
            self.samples.add(self.kind, "failed", 1000 * seconds, problem)

    def _judge(self, request: Prepared, response: Any) -> tuple[Outcome, str, float]:
        """Return the outcome of a request, a description of its failure, and a pause in seconds."""
        status = response.status_code
        if status == 429:
            return "busy", "", float(response.headers.get("Retry-After", 1))
        if status != 200:
            if not status:
                return "failed", f"{request.route}: {response.error!r}"[:_EXCERPT], 0.0
            excerpt = (response.text or "")[:_EXCERPT]
            return "failed", f"{request.route} answered {status}: {excerpt}", 0.0
        try:
            answer = orjson.loads(response.content)
            if (pause := self._busy_seconds(answer)) is not None:
                return "busy", "", pause
            request.check(answer)
        except Wrong as error:
            return "wrong", f"{request.route}: {error}", 0.0
        except Exception as error:  # noqa: BLE001  reading arbitrary JSON may raise anything
            return "failed", f"{request.route}: {error!r}"[:_EXCERPT], 0.0
        return "ok", "", 0.0

    def _busy_seconds(self, _answer: Any) -> float | None:
        """Return the pause that an answer with status 200 asks for, None if it is not busy."""
        return None


class TextUser(CheckingUser):
    """Texts in English and Ukrainian to `/embed/text`."""

    kind = "text"


class ImageUser(CheckingUser):
    """JPEGs of 320 x 240 to 4000 x 3000 pixels to `/embed/image` and `/embed/image/upload`."""

    kind = "image"


class BatchUser(CheckingUser):
    """16 texts to `/embed/texts`, 8 images to `/embed/images`."""

    kind = "batch"


class SearchUser(CheckingUser):
    """Searches by a text, an image or both to `/search`."""

    kind = "search"


class RouterUser(CheckingUser):
    """Texts to embed and text queries to `/route` of the agent router."""

    kind = "router"

    def _busy_seconds(self, answer: Any) -> float | None:
        metadata = answer["metadata"]
        if answer["ok"] or metadata.get("status") != 429:
            return None
        return float(metadata.get("retry_after", 1))


class OpenAIUser(CheckingUser):
    """Three texts to `/v1/embeddings`, as OpenAI's client sends them, with base64 answers."""

    kind = "openai"


USERS: Final[tuple[type[CheckingUser], ...]] = (
    TextUser,
    ImageUser,
    BatchUser,
    SearchUser,
    RouterUser,
    OpenAIUser,
)
