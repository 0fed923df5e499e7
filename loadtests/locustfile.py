"""What locust runs: the users, the shape, and the verdict at the end.

`python -m loadtests` starts it; `python -m locust -f loadtests/locustfile.py` does by hand.
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

__all__ = [  # what locust looks for in a locustfile
    "BatchUser",
    "ImageUser",
    "OpenAIUser",
    "Phases",
    "RouterUser",
    "SearchUser",
    "TextUser",
]

_SPAWN_RATE: Final = 100.0  # users a second; locust advises against more
_START_SECONDS: Final = 300.0  # until the users have come: workers ask the deployment first
_END_SECONDS: Final = 90.0  # until the users have gone: they wait for answers, see --stop-timeout
_SEEN_SECONDS: Final = 4.0  # until workers have sent what they saw of a phase; it is every 3 s


_run = Run()


class Phases(LoadTestShape):
    """Goes through the phases of the run's shape."""

    def tick(self) -> tuple[int, float, list[type[CheckingUser]]] | None:  # type: ignore[override]
        """Return users, how many may come in a second, and their kinds; None at the end."""
        phases, spans, now = _run.shape.phases, _run.spans, time.time()
        if _run.problem:
            return None
        if _run.complete:
            return self._leaving(now)
        if not spans and not self._have_come(phases[0]):
            return self._users(phases[0])
        if not spans or now >= spans[-1].end:
            if len(spans) == len(phases) or self._is_over(now):
                _run.complete = True
                return self._leaving(now)
            phase = phases[len(spans)]
            spans.append(Span(phase, now, now + phase.seconds))
            print(f"{phase.name}: {phase.rate:.3g} requests/s for {phase.seconds:g} s", flush=True)
        return self._users(spans[-1].phase)

    def _have_come(self, first: Phase) -> bool:
        if self.get_run_time() > _START_SECONDS:
            _run.problem = f"the users did not come within {_START_SECONDS:g} s"
        assert self.runner is not None
        return self.runner.user_count >= self._users(first)[0]

    def _leaving(self, now: float) -> tuple[int, float, list[type[CheckingUser]]] | None:
        """Return no users; None when all have gone, so that workers have sent what these saw."""
        assert self.runner is not None
        last = _run.spans[-1]
        if self.runner.user_count and now < last.end + _END_SECONDS:
            return 0, _SPAWN_RATE, self._users(last.phase)[2]
        return None

    def _users(self, phase: Phase) -> tuple[int, float, list[type[CheckingUser]]]:
        count = max(1, round(phase.rate / PACE))
        kinds = [_run.users[kind] for kind in phase.users or _run.users]
        return count, _SPAWN_RATE, kinds

    def _is_over(self, now: float) -> bool:
        """Say whether a climb has met the step that it cannot keep."""
        if not _run.shape.climbs:
            return False
        seen = [span for span in _run.spans if span.end + _SEEN_SECONDS <= now]
        return bool(_run.held.climb(_run.samples, seen[-1:])[1])  # earlier ones were kept


@events.init_command_line_parser.add_listener
def _on_parser(parser: Any) -> None:
    group = parser.add_argument_group("load test")
    names = list(profiles())
    group.add_argument("--slo-profile", choices=names, default="cpu", help="of loadtests/slo.yaml")
    add_options(group)
    group.add_argument(
        "--router", default="", metavar="URL", help="the agent router; without it no RouterUser"
    )
    group.add_argument("--reports", default="loadtests/reports", help="the reports' folder")
    group.add_argument("--expected", default="", help="what loadtests.traffic.reference wrote")
    group.add_argument(
        "--fact",
        type=lambda text: text.split("=", 1),
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="a line for the report",
    )


@events.init.add_listener
def _on_init(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        environment.events.report_to_master.add_listener(
            lambda client_id, data: data.update(loadtest=_run.samples.take())
        )
        return  # it takes the master's options, when these have come
    _run.configure(environment.parsed_options or argparse.Namespace())
    logging.getLogger("locust.stats_logger").disabled = True  # the report has its own tables
    if isinstance(runner, MasterRunner):
        environment.events.worker_report.add_listener(
            lambda client_id, data: _run.samples.merge(data["loadtest"])
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
    """Take down once a second what this process of the generator uses."""
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
        print(f"the report could not be written: {error}", flush=True)
    else:
        print(f"report: {folder}", flush=True)
