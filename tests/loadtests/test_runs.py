"""Load tests against stubs: each fault fails the run, and the right objective is named."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from loadtests.reporting import PLOT, SUMMARY, TIMELINE
from tests.support.loadruns import SILENT, Done, distributed, local, running
from tests.support.paths import ROOT

pytestmark = pytest.mark.service

RUNS = {
    "silent": local("silent", *SILENT),
    "busy": local("busy", "--shape", "mixed", "--seconds", "12"),
    "swapping, distributed": distributed("swapping"),
    "none": local("none", indexes=True),
    # Its summary cannot be written, because a folder has the same name.
    "slow": local("slow", "--seconds", "6", prepare=lambda reports: (reports / SUMMARY).mkdir()),
    "swapping": local("swapping", "--seconds", "6"),
    "failing": local("failing", "--seconds", "6"),
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Done]]:
    with running(RUNS, tmp_path_factory.mktemp("runs")) as ended:
        yield ended


def test_a_service_that_meets_every_objective_passes(done: Callable[[str], Done]) -> None:
    ended = done("none")
    assert (ended.status, ended.missed) == (0, set()), ended.output
    ending = ["PASS: shape steady, profile cpu", f"report: {ended.reports}"]
    assert ended.output.rstrip().splitlines()[-2:] == ending
    seen = ended.stub.seen
    assert seen["/images"] == 500
    assert all(seen[path] for path in ("/embed/text", "/embed/texts", "/embed/image"))
    assert all(seen[path] for path in ("/embed/image/upload", "/embed/images", "/search"))
    assert all(seen[path] for path in ("/route", "/v1/embeddings"))
    written = {file.name: file.read_text(errors="replace") for file in ended.reports.iterdir()}
    assert set(written) == {SUMMARY, PLOT, TIMELINE, "report.html"}
    assert "a-key" not in "".join(written.values())


def test_a_slow_service_fails_though_its_report_cannot_be_written(
    done: Callable[[str], Done],
) -> None:
    ended = done("slow")
    assert ended.status == 1, ended.output
    assert {"text p50"} <= ended.missed <= {"text p50", "text rate"}, ended.output
    assert "FAIL: shape steady, profile cpu" in ended.output
    assert "cannot write the report" in ended.output
    assert "Traceback" not in ended.output


def test_a_service_that_exchanges_embeddings_fails(done: Callable[[str], Done]) -> None:
    ended = done("swapping")
    assert ended.status == 1, ended.output
    assert {"text wrong"} <= ended.missed <= {"text wrong", "text rate"}, ended.output
    assert "belongs to another request" in ended.summary


def test_a_service_that_fails_one_request_in_fifty_fails(done: Callable[[str], Done]) -> None:
    ended = done("failing")
    assert ended.status == 1, ended.output
    figures = {name.split()[1] for name in ended.missed}
    assert {"failed"} <= figures <= {"failed", "rate"}, ended.output
    assert "answered 500" in ended.summary


def test_a_service_that_stops_answering_fails(done: Callable[[str], Done]) -> None:
    ended = done("silent")
    assert ended.status == 1, ended.output
    figures = {name.split()[1] for name in ended.missed}
    assert {"failed", "rate"} <= figures <= {"failed", "rate", "correct"}, ended.output
    assert "had no answer at the end of the run" in ended.summary


def test_bulk_images_run_beside_texts_and_users_honour_retry_after(
    done: Callable[[str], Done],
) -> None:
    ended = done("busy")
    assert ended.status == 1, ended.output
    assert "text answered 429" in ended.missed, ended.output
    assert ended.stub.refused
    assert ended.stub.early == 0
    assert "p95 beside bulk / texts alone" in ended.summary
    seen = ended.stub.seen
    assert seen["/embed/image"] + seen["/embed/image/upload"] - 24 > seen["/embed/text"] - 54 > 16


def test_a_master_judges_the_samples_of_its_workers(done: Callable[[str], Done]) -> None:
    ended = done("swapping, distributed")
    assert ended.status == 1, ended.output
    assert "text wrong" in ended.missed, ended.output
    assert ended.stub.seen["/route"] == 0
    assert re.search(r"generator \| \S+_[0-9a-f]+ \d+ % of a core", ended.summary), ended.summary


# Importing locust patches the standard library, so this runs in a process of its own.
USER = """
import gevent
from locust.env import Environment
from loadtests import users
from loadtests.samples import Samples
from loadtests.traffic.bodies import Prepared

now = 0.0

class User(users.TextUser):
    host = "http://127.0.0.1:9"
    requests = [Prepared("/embed/text", "application/json", b"{}", print)]
    clock = staticmethod(lambda: now)

def stopped(after):
    global now
    now = 0.0
    User.samples = Samples()
    user, waiting = User(Environment(user_classes=[User])), gevent.event.Event()
    user.client.request = lambda *_, **__: waiting.set() or gevent.sleep(60)
    running = gevent.spawn(user.run)
    waiting.wait()
    now = after
    running.kill()
    outcomes = [answer.outcome for answer in User.samples.answers]
    return outcomes, sum(each.n for each in User.samples.asked)

outcomes, asked = stopped(after=14)
assert outcomes == []
assert 6.4 < asked < 7.6, asked  # the one that was sent, and 5.5 to 6.5 that were skipped
assert stopped(after=16)[0] == ["failed"]
"""


def test_an_outstanding_request_fails_at_the_end_only_if_it_is_overdue() -> None:
    subprocess.run([sys.executable, "-c", USER], cwd=ROOT, check=True, timeout=60)
