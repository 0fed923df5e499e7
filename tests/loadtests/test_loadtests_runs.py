"""Load tests that run against a stand-in: each of its faults is found, and named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from loadtests.reporting import PLOT, SUMMARY, TIMELINE
from tests.support.loadstub import Stub
from tests.support.paths import ROOT
from tests.support.serving import free_port


@dataclass
class Done:
    """A run that has ended, and the service that it was against."""

    status: int
    output: str
    reports: Path
    stub: Stub

    @property
    def violated(self) -> set[str]:
        return set(re.findall(r"^- (.*?)(?: \(.*\))?: ", self.output, re.M))

    @property
    def summary(self) -> str:
        return (self.reports / SUMMARY).read_text()


def run(stub: Stub, reports: Path, *arguments: str, **environment: str) -> Done:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "loadtests", "--host", stub.url, "--router", stub.url),
            *("--slo-profile", "cpu", "--weights", "batch=1", "--rate", "40", "--seconds", "8"),
            *("--reports", str(reports), *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    )
    return Done(done.returncode, done.stdout, reports, stub)


# Most of a run is waiting, so that several run at once. By the stub's fault:
RUNS = {
    "narrow": ("--shape", "ramp", "--rate", "50", "--seconds", "24"),  # it does 50/s at the most
    "tiring": ("--shape", "spike", "--rate", "15", "--seconds", "15"),
    "busy": ("--shape", "mixed", "--seconds", "12"),
    "none": (),
    "slow": (),
    "swapping": (),
    "failing": (),
    "silent": (),
    "unwritable": ("--seconds", "4"),  # a slow one whose summary cannot be written
}
AT_ONCE = 3


def distributed(fault: str, reports: Path) -> Done:
    """Run a master and a worker by the commands of the compose file."""
    services = yaml.safe_load((ROOT / "loadtests" / "docker-compose.yml").read_text())["services"]
    port = str(free_port())
    script = services["master"]["command"][-1].replace("$$", "$").strip()
    script = script.replace("exec python", f"exec {sys.executable}")
    with Stub(fault).serving() as stub:
        worker = subprocess.Popen(
            [
                sys.executable,
                *services["worker"]["command"][1:-1],
                *("127.0.0.1", "--master-port", port, "--loglevel", "ERROR"),
            ],
            cwd=ROOT,
        )
        done = subprocess.run(
            ["sh", "-c", f"{script} --master-bind-port {port} --reports {reports}"],
            cwd=ROOT,
            env={
                **os.environ,
                **{"HOST": stub.url, "ROUTER": "", "PROFILE": "cpu", "SHAPE": "steady"},
                **{"DURATION": "10", "GENERATORS": "1", "RATE": "40", "WEIGHTS": "batch=0"},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
        )
        worker.wait(60)
    return Done(done.returncode, done.stdout, reports, stub)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Done]]:
    def against(fault: str, reports: Path) -> Done:
        if fault == "unwritable":
            (reports / SUMMARY).mkdir()
        with Stub("slow" if fault == "unwritable" else fault).serving() as stub:
            stub.key = "a-key"
            return run(stub, reports, *RUNS[fault], API_KEY="a-key,another")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        begun: dict[str, Future[Done]] = {
            fault: pool.submit(against, fault, tmp_path_factory.mktemp(fault)) for fault in RUNS
        }
        for fault in ("swapping", "silent"):
            name = f"{fault}, distributed"
            begun[name] = pool.submit(distributed, fault, tmp_path_factory.mktemp("run"))
        yield lambda fault: begun[fault].result()


def test_a_service_that_keeps_everything_passes(done: Callable[[str], Done]) -> None:
    ended = done("none")
    assert (ended.status, ended.violated) == (0, set()), ended.output
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


def test_one_that_is_slow_is_found_and_named(done: Callable[[str], Done]) -> None:
    ended = done("slow")
    assert ended.status == 1
    assert {"text p50"} <= ended.violated <= {"text p50", "text rate"}, ended.output


def test_one_that_exchanges_embeddings_is_found_and_named(done: Callable[[str], Done]) -> None:
    ended = done("swapping")
    assert ended.status == 1
    assert {"text wrong"} <= ended.violated <= {"text wrong", "text rate"}, ended.output
    assert "that of another request" in ended.summary


def test_one_failure_in_fifty_is_found_and_named(done: Callable[[str], Done]) -> None:
    ended = done("failing")
    assert ended.status == 1
    figures = {name.split()[1] for name in ended.violated}
    assert {"failed"} <= figures <= {"failed", "rate"}, ended.output
    assert "answered 500" in ended.summary


@pytest.mark.parametrize("run", ["silent", "silent, distributed"])
def test_one_that_stops_answering_is_found(done: Callable[[str], Done], run: str) -> None:
    ended = done(run)
    assert ended.status == 1
    figures = {name.split()[1] for name in ended.violated}
    assert {"failed", "rate"} <= figures <= {"failed", "rate", "right"}, ended.output
    assert "was not answered until the end of the run" in ended.summary


USER = """
import gevent
from locust.env import Environment
from loadtests import users
from loadtests.traffic.bodies import Prepared
from loadtests.samples import Samples

class User(users.TextUser):
    host = "http://127.0.0.1:9"
    requests = [Prepared("/embed/text", "application/json", b"{}", print)]
    samples = Samples()

def stopped(patience):
    users._PATIENCE_SECONDS = patience
    user = User(Environment(user_classes=[User]))
    user.client.request = lambda *_, **__: waiting.set() or gevent.sleep(60)
    waiting = gevent.event.Event()
    user._due, user.on_start = users.time.perf_counter() - 11, lambda: None
    user._order, user._turn, user._keys = user.requests, 0, {}
    running = gevent.spawn(user.run)
    waiting.wait()
    running.kill()
    return [answer.outcome for answer in user.samples.answers]

assert stopped(600) == []
assert stopped(0) == ["failed"]
assert 9.9 < sum(each.n for each in User.samples.asked) - 2 < 12, User.samples.asked
"""


def test_what_is_under_way_at_the_end_is_a_failure_only_when_it_is_late() -> None:
    subprocess.run([sys.executable, "-c", USER], cwd=ROOT, check=True, timeout=60)


def test_one_that_stays_slow_after_a_spike_is_found(done: Callable[[str], Done]) -> None:
    ended = done("tiring")
    assert ended.status == 1 and "all p50 after / before" in ended.violated, ended.output


def test_the_knee_of_one_with_a_known_capacity(done: Callable[[str], Done]) -> None:
    ended = done("narrow")
    found = re.search(r"^knee: ([0-9.]+) requests/s$", ended.output, re.M)
    assert ended.status == 0 and found, ended.output
    assert 25 <= float(found[1]) < 50
    assert re.search(r"^  above it, \w+ p95 .* ms, allowed is at most", ended.output, re.M)


def test_bulk_images_come_beside_texts_and_who_is_busy_is_left_alone(
    done: Callable[[str], Done],
) -> None:
    ended = done("busy")
    assert ended.status == 1 and "text answered 429" in ended.violated, ended.output
    assert ended.stub.refused and ended.stub.early == 0  # Retry-After was honoured
    assert "p95 beside bulk / texts alone" in ended.summary
    seen = ended.stub.seen
    assert seen["/embed/image"] + seen["/embed/image/upload"] - 24 > seen["/embed/text"] - 54 > 16


def test_a_deployment_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    done = run(Stub(), tmp_path)
    assert done.status == 1 and "does not answer GET /info" in done.output


def test_a_deployment_that_wants_a_key_is_said_to_do_so(tmp_path: Path) -> None:
    with Stub().serving() as served:
        served.key = "a-key"
        done = run(served, tmp_path, API_KEY="")
    assert done.status == 1 and "401" in done.output and "API_KEY" in done.output


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--slo-profile", "ci"), 1, "relative to this machine"),
        (("--slo-profile", "nope"), 2, "ci"),
        (("--shape", "nope"), 2, "steady"),
        (("--rate", "0"), 2, "not above 0"),
        (("--weights", "texts=1"), 2, "text, image, batch, search, router, openai"),
        (
            ("--weights", "text=0,image=0,batch=0,search=0,router=0,openai=0"),
            1,
            "the weights leave no user",
        ),
    ],
)
def test_options_are_refused_before_the_deployment_is_asked(
    tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    with Stub().serving() as served:
        done = run(served, tmp_path, *arguments)
    assert done.status == status and said in done.output, done.output
    assert "Traceback" not in done.output and not served.seen


def test_reports_that_cannot_be_written_are_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Stub().serving() as served:
        done = run(served, tmp_path / "file" / "reports")
    assert done.status == 1 and "reports cannot be written" in done.output
    assert "Traceback" not in done.output and not served.seen


def test_a_verdict_is_given_though_its_report_cannot_be_written(
    done: Callable[[str], Done],
) -> None:
    ended = done("unwritable")
    assert ended.status == 1 and "text p50" in ended.violated, ended.output
    assert "FAIL: shape steady, profile cpu" in ended.output
    assert "the report could not be written" in ended.output and "Traceback" not in ended.output


def test_the_compose_file_hands_on_every_variable_that_is_documented() -> None:
    compose = (ROOT / "loadtests" / "docker-compose.yml").read_text()
    docs = (ROOT / "docs" / "loadtests.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z]+)` \| `--", docs, re.M))
    given = dict(re.findall(r"^      ([A-Z]+): \$\{([A-Z]+):", compose, re.M))
    assert documented == set(given.values()) - {"GENERATORS"} and len(documented) == 7
    master = compose.partition("services:")[2]
    assert all(f"$${name}" in master or f"$${{{name}:" in master for name in given)
    variables = set(re.findall(r"[A-Z]+", re.findall(r"user: (.*) #", compose)[0]))
    assert all(f'{name}="$(id -{name[0].lower()})"' in docs for name in variables)


def test_a_master_judges_what_its_workers_saw(done: Callable[[str], Done]) -> None:
    ended = done("swapping, distributed")
    assert ended.status == 1 and "text wrong" in ended.violated, ended.output
    assert ended.stub.seen["/route"] == 0
    assert re.search(r"generator \| \S+_[0-9a-f]+ \d+ % of a core", ended.summary), ended.summary
