"""The users. Each sends its prepared requests at its own pace and checks every answer."""

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

_LATE_SECONDS: Final = 1.0  # what is late by more is not made up for
_PATIENCE_SECONDS: Final = 15.0  # a service may let a request wait for 10, see MAX_QUEUE_MS
_SAID: Final = 160  # letters of an error's text


class CheckingUser(FastHttpUser):
    """A user that knows what its requests must be answered with."""

    abstract = True
    kind: ClassVar[str]
    requests: ClassVar[list[Prepared]] = []  # set before a run, as are the others
    samples: ClassVar[Samples]
    base: ClassVar[str] = ""  # another host than the run's
    paced: ClassVar[bool] = True  # False: the next request follows the last answer at once
    longest: ClassVar[float] = 0.0  # seconds that an answer may take by the objectives

    connection_timeout = 10.0
    network_timeout = 70.0  # the service gives up on a request after 60

    _due = math.inf

    def on_start(self) -> None:
        """Begin at a moment, and with a request, of one's own."""
        if not self.requests:
            raise StopUser  # the deployment could not be asked; the run is about to end
        self._order = random.sample(self.requests, len(self.requests))
        self._turn = 0
        self._keys = keys()
        self._due = time.perf_counter() + random.random() / PACE
        if self.paced:
            gevent.sleep(self._due - time.perf_counter())

    def wait_time(self) -> float:
        """Return the seconds until the next request is due, whether or not the last was quick."""
        if not self.paced:
            return 0.0
        self._miss()
        self._due += random.uniform(0.5, 1.5) / PACE
        return max(0.0, self._due - time.perf_counter())

    def on_stop(self) -> None:
        """Take down what was left out because of an answer that has not come."""
        if self.paced:
            self._miss()

    def _miss(self) -> None:
        """Take down the requests that there was no time for."""
        if (late := time.perf_counter() - _LATE_SECONDS - self._due) > 0:
            self.samples.ask(self.kind, late * PACE, late)
            self._due += late

    @task
    def ask(self) -> None:
        """Send the next request."""
        request = self._order[self._turn % len(self._order)]
        self._turn += 1
        self.samples.ask(self.kind)
        began = time.perf_counter()
        try:
            answer = self.client.request(
                "POST",
                self.base + request.route,
                name=self.kind,
                data=request.body,  # type: ignore[arg-type]  # bytes are sent as they are
                headers={"Content-Type": request.content_type, **self._keys},
                catch_response=True,
            )
        except gevent.GreenletExit:
            self._give_up(request, time.perf_counter() - began)
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
        """Take down that the run ended before an answer came, unless it was not late yet."""
        if seconds > max(_PATIENCE_SECONDS, self.longest):
            problem = f"{request.route} was not answered until the end of the run"
            self.samples.add(self.kind, "failed", 1000 * seconds, problem)

    def _judge(self, request: Prepared, response: Any) -> tuple[Outcome, str, float]:
        """Return what came of a request, what is wrong with it, and the seconds to stay away."""
        status = response.status_code
        if status == 429:
            return "busy", "", float(response.headers.get("Retry-After", 1))
        if status != 200:
            said = response.text if status else repr(response.error)
            return "failed", f"{request.route} answered {status}: {(said or '')[:_SAID]}", 0.0
        try:
            answer = orjson.loads(response.content)
            if (pause := self._refused(answer)) is not None:
                return "busy", "", pause
            request.check(answer)
        except Wrong as error:
            return "wrong", f"{request.route}: {error}", 0.0
        except Exception as error:  # not the JSON that it should be
            return "failed", f"{request.route}: {error!r}"[:_SAID], 0.0
        return "ok", "", 0.0

    def _refused(self, answer: Any) -> float | None:
        """Return the seconds to stay away when an answer with 200 says that it is busy."""
        return None


class TextUser(CheckingUser):
    """`/embed/text`, in English and Ukrainian."""

    kind = "text"


class ImageUser(CheckingUser):
    """`/embed/image` and `/embed/image/upload`: JPEGs of 320 x 240 to 4000 x 3000."""

    kind = "image"


class BatchUser(CheckingUser):
    """`/embed/texts` with 16, `/embed/images` with 8."""

    kind = "batch"


class SearchUser(CheckingUser):
    """`/search` by a text, an image, or both."""

    kind = "search"


class RouterUser(CheckingUser):
    """`/route` of the agent router: embeds texts, searches by them."""

    kind = "router"

    def _refused(self, answer: Any) -> float | None:
        about = answer["metadata"]
        if answer["ok"] or about.get("status") != 429:
            return None
        return float(about.get("retry_after", 1))


class OpenAIUser(CheckingUser):
    """`/v1/embeddings` as OpenAI's client asks it: three texts, base64."""

    kind = "openai"


USERS: Final[tuple[type[CheckingUser], ...]] = (
    TextUser,
    ImageUser,
    BatchUser,
    SearchUser,
    RouterUser,
    OpenAIUser,
)
