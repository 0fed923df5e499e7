"""The locustfile: the users, the load shape, and the verdict at the end of a run.

`python -m loadtests` runs it. To run it by hand: `python -m locust -f loadtests/locustfile.py`.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any, Final

import gevent
import psutil  # type: ignore[import-untyped]
from locust import LoadTestShape, events
from locust.env import Environment
from locust.html import get_html_report
from locust.runners import STATE_STOPPED, MasterRunner, Runner, WorkerRunner

from loadtests.objectives import Span, profiles
from loadtests.options import add_options
from loadtests.run import Run
from loadtests.samples import Usage
from loadtests.shapes import PACE, Phase
from loadtests.traffic.deployment import Deployment, Unusable
from loadtests.users import (
    BatchUser,
    CheckingUser,
    ImageUser,
    OpenAIUser,
    RouterUser,
    SearchUser,
    TextUser,
)

__all__ = [  # locust finds the users and the shape by these names
    "BatchUser",
    "ImageUser",
    "OpenAIUser",
    "Phases",
    "RouterUser",
    "SearchUser",
    "TextUser",
]

_SPAWN_RATE: Final = 100.0  # users per second; locust advises against more
_START_SECONDS: Final = 300.0  # for all users to start; workers first query the deployment
_END_SECONDS: Final = 90.0  # for all users to stop; they wait for answers, see --stop-timeout
_REPORT_SECONDS: Final = 4.0  # for the samples of a phase to arrive; workers send them every 3 s

_run = Run()


class Phases(LoadTestShape):
    """Apply the load of each phase of the run's shape in turn."""

    def tick(self) -> tuple[int, float, list[type[CheckingUser]]] | None:  # type: ignore[override]
        """Return the number of users, the spawn rate and the user classes; None ends the run."""
        phases, spans, now = _run.shape.phases, _run.spans, time.time()
        if _run.problem:
            return None
        if _run.complete:
            return self._stopping(now)
        if not spans and not self._have_started(phases[0]):
            return self._users(phases[0])
        if not spans or now >= spans[-1].end:
            if len(spans) == len(phases) or self._has_broken(now):
                _run.complete = True
                return self._stopping(now)
            phase = phases[len(spans)]
            spans.append(Span(phase, now, now + phase.seconds))
            print(f"{phase.name}: {phase.rate:.3g} requests/s for {phase.seconds:g} s", flush=True)
        return self._users(spans[-1].phase)

    def _have_started(self, first: Phase) -> bool:
        if self.get_run_time() > _START_SECONDS:
            _run.problem = f"not all users had started after {_START_SECONDS:g} s"
        assert self.runner is not None
        return self.runner.user_count >= self._users(first)[0]

    def _stopping(self, now: float) -> tuple[int, float, list[type[CheckingUser]]] | None:
        """Request 0 users. Return None once all have stopped, and so have sent their samples."""
        assert self.runner is not None
        last = _run.spans[-1]
        if self.runner.user_count and now < last.end + _END_SECONDS:
            return 0, _SPAWN_RATE, self._users(last.phase)[2]
        return None

    def _users(self, phase: Phase) -> tuple[int, float, list[type[CheckingUser]]]:
        count = max(1, round(phase.rate / PACE))
        kinds = [_run.users[kind] for kind in phase.users or _run.users]
        return count, _SPAWN_RATE, kinds

    def _has_broken(self, now: float) -> bool:
        """Return whether the latest step of a climb missed an objective."""
        if not _run.shape.climbs:
            return False
        reported = [span for span in _run.spans if span.end + _REPORT_SECONDS <= now]
        return bool(_run.judge.climb(_run.samples, reported[-1:])[1])  # the others met theirs


@events.init_command_line_parser.add_listener
def _on_parser(parser: Any) -> None:
    group = parser.add_argument_group("load test")
    names = list(profiles())
    group.add_argument(
        "--slo-profile",
        choices=names,
        default="cpu",
        help="the objectives, from loadtests/slo.yaml (default: cpu)",
    )
    add_options(group)
    group.add_argument(
        "--router", default="", metavar="URL", help="agent router; without it, no RouterUser runs"
    )
    group.add_argument("--reports", default="loadtests/reports", help="folder for the reports")
    group.add_argument("--expected", default="", help="file from loadtests.traffic.reference")
    group.add_argument(
        "--fact",
        type=lambda text: text.split("=", 1),
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="a line to add to the report",
    )


@events.init.add_listener
def _on_init(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        environment.events.report_to_master.add_listener(
            lambda data, **_: data.update(loadtest=_run.samples.take())
        )
        return  # `_on_start` configures it, with the options of the master
    _run.configure(environment.parsed_options or argparse.Namespace())
    logging.getLogger("locust.stats_logger").disabled = True  # our report replaces it
    if isinstance(runner, MasterRunner):
        environment.events.worker_report.add_listener(
            lambda data, **_: _run.samples.merge(data["loadtest"])
        )
        runner.register_message("unusable", _on_unusable)


def _on_unusable(msg: Any, **_: Any) -> None:
    _run.problem = msg.data["problem"]


@events.test_start.add_listener
def _on_start(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    assert runner is not None
    _run.samples.clear()
    _run.spans.clear()
    _run.complete, _run.problem = False, ""
    try:
        if isinstance(runner, WorkerRunner):
            _run.configure(environment.parsed_options or argparse.Namespace())
        if isinstance(runner, MasterRunner):
            with Deployment(environment.host or "") as deployment:
                _run.info = deployment.info()
        else:
            _run.prepare(environment.host or "")
    except Unusable as error:
        _run.problem = str(error)
        if isinstance(runner, WorkerRunner):
            runner.send_message("unusable", {"problem": str(error)})
    if not isinstance(runner, MasterRunner):
        runner.greenlet.spawn(_watch, runner)


def _watch(runner: Runner) -> None:
    """Record the CPU time of this generator process once a second."""
    process = psutil.Process()
    name = runner.client_id if isinstance(runner, WorkerRunner) else "generator"
    process.cpu_percent()
    while runner.state != STATE_STOPPED:
        gevent.sleep(1)
        _run.samples.usages.append(Usage(time.time(), name, process.cpu_percent() / 100))


@events.quitting.add_listener
def _on_quitting(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner) or environment.runner is None:
        return
    report = _run.report(environment.host or "")
    folder = Path(_run.options.reports)
    print("", report.tables(), report.verdict(), sep="\n", flush=True)
    environment.process_exit_code = 0 if report.passed else 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report.write(folder)
        (folder / "report.html").write_text(get_html_report(environment, show_download_link=False))
    except OSError as error:
        print(f"cannot write the report: {error}", flush=True)
    else:
        print(f"report: {folder}", flush=True)
