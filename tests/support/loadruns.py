"""Run load tests as processes against stubs, several at a time, because a run mostly waits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from loadtests.reporting import SUMMARY
from tests.support.loadstub import Stub
from tests.support.paths import ROOT
from tests.support.serving import free_port

AT_ONCE = 3
SILENT = ("--stop-timeout", "12")  # with 8 s of load, enough for a request to be overdue after 15 s

Start = Callable[[Path], "Done"]


@dataclass
class Done:
    """A run that has ended, and the stub that it tested."""

    status: int
    output: str
    reports: Path
    stub: Stub

    @property
    def missed(self) -> set[str]:
        """The user and the figure of each missed objective."""
        return set(re.findall(r"^- (.*?)(?: \(.*\))?: ", self.output, re.M))

    @property
    def summary(self) -> str:
        return (self.reports / SUMMARY).read_text()


def local(
    fault: str,
    *options: str,
    indexes: bool = False,
    prepare: Callable[[Path], object] | None = None,
) -> Start:
    """Return a run against a stub that requires a key."""

    def start(reports: Path) -> Done:
        if prepare:
            prepare(reports)
        with Stub(fault, indexes=indexes).serving() as stub:
            stub.key = "a-key"
            command = [
                *(sys.executable, "-m", "loadtests", "--host", stub.url, "--router", stub.url),
                *("--slo-profile", "cpu", "--weights", "batch=1", "--rate", "40", "--seconds", "8"),
                *("--reports", str(reports), *options),
            ]
            done = _run(command, API_KEY="a-key,another")
        return Done(done.returncode, done.stdout, reports, stub)

    return start


def distributed(fault: str, *options: str) -> Start:
    """Return a run by a master and a worker, with the commands of the compose file."""

    def start(reports: Path) -> Done:
        compose = yaml.safe_load((ROOT / "loadtests" / "docker-compose.yml").read_text())
        master, worker = (compose["services"][name]["command"] for name in ("master", "worker"))
        port = str(free_port())
        script = master[-1].replace("$$", "$").strip()
        script = script.replace("exec python", f"exec {sys.executable}")
        more = f"--master-bind-port {port} --reports {reports} {' '.join(options)}"
        with Stub(fault).serving() as stub:
            process = subprocess.Popen(
                [
                    *(sys.executable, *worker[1:-1]),
                    *("127.0.0.1", "--master-port", port, "--loglevel", "ERROR"),
                ],
                cwd=ROOT,
            )
            done = _run(
                ["sh", "-c", f"{script} {more}"],
                **{"HOST": stub.url, "ROUTER": "", "PROFILE": "cpu", "SHAPE": "steady"},
                **{"DURATION": "8", "GENERATORS": "1", "RATE": "40", "WEIGHTS": "batch=0"},
            )
            process.wait(60)
        return Done(done.returncode, done.stdout, reports, stub)

    return start


def _run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    )


@contextmanager
def running(runs: Mapping[str, Start], folder: Path) -> Iterator[Callable[[str], Done]]:
    """Start all runs, and yield a function that waits for one of them by its name."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        begun = {}
        for number, (name, start) in enumerate(runs.items()):
            reports = folder / str(number)
            reports.mkdir()
            begun[name] = pool.submit(partial(start, reports))
        yield lambda name: begun[name].result()
