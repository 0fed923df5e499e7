"""The load tests can fail: each fault of a stand-in is found, and the right objective is named."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from loadtests.bodies import USERS, prepared, searches
from loadtests.expected import Expected, Wrong
from loadtests.inputs import TEXTS, pictures
from loadtests.objectives import Held, Limits, Objective, Profile, Span, profiles
from loadtests.reporting import PLOT, SUMMARY, Report
from loadtests.samples import Answer, Asked, Outcome, Samples, Usage
from loadtests.shapes import SHAPES, Shape

from .conftest import ROOT, free_port
from .fakes import vector_of
from .loadstub import Stub

LIMITS = Limits(p50=10, p95=20, p99=30, busy=0.01, rate=0.8)
PROFILE = Profile(
    times="ms",
    rate=10,
    recovery=1.1,
    interference=4,
    weights={"text": 1, "image": 1},
    objectives={"text": LIMITS, "image": LIMITS},
)


# Judging, without a load.


@dataclass
class Observed:
    """Samples of ten requests a second of each kind, answered after 9 ms."""

    shape: Shape

    def __post_init__(self) -> None:
        self.samples = Samples()
        self.spans: list[Span] = []
        now = 1000.0
        for phase in self.shape.phases:
            self.spans.append(Span(phase, now, now + phase.seconds))
            for second in range(int(phase.seconds)):
                for kind in phase.users or ("text", "image"):
                    self.add(kind, now + second, 10)
            now += phase.seconds

    def add(self, user: str, at: float, n: int, ms: float = 9.0, outcome: Outcome = "ok") -> None:
        self.samples.answers += [Answer(at + i / n, user, outcome, ms) for i in range(n)]
        self.samples.asked += [Asked(at + i / n, user, 1) for i in range(n)]

    def drop(self, user: str, start: float, end: float) -> None:
        """Let requests be without an answer."""
        self.samples.answers = [
            a for a in self.samples.answers if a.user != user or not start <= a.at < end
        ]

    def held(self) -> Held:
        return Held(PROFILE, self.shape, ("text", "image"))

    def violated(self) -> list[tuple[str, str, str]]:
        rows = self.held().judge(self.samples, self.spans)
        return [(row.phase, row.user, row.figure) for row in rows if not row.met]


def test_a_run_that_keeps_everything_violates_nothing() -> None:
    for name, shape in SHAPES.items():
        assert Observed(shape(10, 60)).violated() == [], name


@pytest.mark.parametrize(
    ("outcome", "n", "ms", "figure"),
    [
        ("ok", 700, 11, "p50"),
        ("ok", 40, 21, "p95"),
        ("ok", 8, 31, "p99"),
        ("busy", 8, 1, "answered 429"),
        ("failed", 1, 1, "failed"),
        ("wrong", 1, 1, "wrong"),
    ],
)
def test_the_figure_that_is_violated_is_named(
    outcome: Outcome, n: int, ms: float, figure: str
) -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    observed.add("image", 1010, n, ms, outcome)
    assert observed.violated() == [("", "image", figure)]


def test_refusals_do_not_make_the_latency_look_better() -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    observed.add("image", 1010, 700, 11)
    observed.add("image", 1010, 2000, 1, "busy")
    assert ("", "image", "p50") in observed.violated()


def test_what_is_within_the_limit_is_not_named() -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    observed.add("image", 1010, 500, 11)
    observed.add("text", 1010, 5, 1, "busy")
    assert observed.violated() == []


def test_requests_that_could_not_be_sent_show_in_the_rate() -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    observed.samples.asked.append(Asked(1030, "image", 140))  # of 580 + 140
    assert observed.violated() == []
    observed.samples.asked.append(Asked(1030, "image", 10))
    assert observed.violated() == [("", "image", "rate")]


def test_requests_that_are_not_answered_show_in_the_rate() -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    observed.drop("text", 1002, 1016)  # 14 of 58 s
    assert observed.violated() == [("", "text", "rate")]
    observed.drop("text", 1002, 1060)
    assert ("", "text", "right answers") in observed.violated()


def test_calibrated_times_are_multiples() -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    twice = Held(PROFILE, observed.shape, ("text", "image"), unit_ms=0.5)
    broken = [row for row in twice.judge(observed.samples, observed.spans) if not row.met]
    assert [(row.user, row.figure, row.limit) for row in broken] == [
        ("text", "p50", 5.0),
        ("image", "p50", 5.0),
    ]


def test_after_a_spike_the_latency_must_come_back() -> None:
    observed = Observed(SHAPES["spike"](20, 60))
    after = observed.spans[-1]
    for second in range(20):
        observed.add("text", after.start + second, 12, 9.95)
        observed.add("image", after.start + second, 12, 9.95)
    assert observed.violated() == [("", "all", "p50 after / before")]


def test_in_the_spike_itself_only_answers_count() -> None:
    observed = Observed(SHAPES["spike"](20, 60))
    observed.add("text", observed.spans[1].start + 5, 500, 900)
    observed.add("text", observed.spans[1].start + 5, 500, 1, "busy")
    observed.add("text", observed.spans[2].start + 5, 5, 1, "failed")  # settling
    assert observed.violated() == []
    observed.add("text", observed.spans[1].start + 5, 1, 1, "failed")
    assert observed.violated() == [("10 times", "text", "failed")]


def test_a_soak_that_becomes_slower_is_seen() -> None:
    observed = Observed(SHAPES["soak"](20, 80))
    for second in range(20):
        observed.add("text", observed.spans[-1].start + second, 30, 9.95)
    assert observed.violated() == [("", "all", "p50 last quarter / first quarter")]


def test_texts_that_wait_for_bulk_images_are_seen() -> None:
    observed = Observed(SHAPES["mixed"](20, 60))
    observed.add("image", observed.spans[1].start + 5, 500, 900)  # those may
    assert observed.violated() == []
    observed.add("text", observed.spans[1].start + 5, 30, 37)
    assert observed.violated() == [("", "text", "p95 beside bulk / texts alone")]


def test_the_knee_is_before_the_first_step_that_breaks_an_objective() -> None:
    observed = Observed(SHAPES["ramp"](20, 60))
    step = observed.spans[3]
    observed.add("image", step.start + 3, 8, 21)
    knee, broken = observed.held().climb(observed.samples, observed.spans)
    assert knee == observed.spans[2].phase.rate == pytest.approx(10 * 1.25**2)
    assert [(row.phase, row.user, row.figure) for row in broken] == [("19.5/s", "image", "p95")]
    assert observed.violated() == []  # it is above the profile's rate


def test_a_knee_below_the_profile_s_rate_is_a_failure() -> None:
    observed = Observed(SHAPES["ramp"](20, 60))
    observed.drop("text", observed.spans[0].start, observed.spans[0].end)
    assert observed.violated() == [("", "all", "knee")]


def test_every_profile_has_an_objective_and_a_weight_for_every_user() -> None:
    assert set(profiles()) == {"ci", "cpu", "gpu"}
    for profile in profiles().values():
        assert set(profile.objectives) == set(profile.weights) == set(USERS)


# Whose embedding it is.


TABLE = Expected(
    {name: vector_of(name.encode()) for name in "abc"}, {"s": [("1", 0.9), ("2", 0.5)]}
)


def between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return a unit vector near the first, a little towards the second."""
    sum_ = one + 0.3 * other
    return np.asarray(sum_ / np.linalg.norm(sum_))


def test_the_right_embedding_passes_in_another_dtype() -> None:
    TABLE.check_vector("a", vector_of(b"a").astype(np.float16).tolist())
    TABLE.check_vectors(["a", "b"], [vector_of(b"a"), vector_of(b"b")])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (vector_of(b"b"), "that of another request: 'b'"),
        (between(vector_of(b"a"), vector_of(b"d")), "cosine to the right one is 0.9"),
        (vector_of(b"a") * 2, "norm 2.000"),
        (vector_of(b"a")[:8], "shape"),
        (vector_of(b"a") * math.nan, "norm nan"),
        ([], "shape"),
    ],
)
def test_another_embedding_is_wrong(values: Sequence[float], said: str) -> None:
    with pytest.raises(Wrong, match=said):
        TABLE.check_vector("a", values)


def test_two_that_are_exchanged_are_wrong() -> None:
    with pytest.raises(Wrong, match="another request"):
        TABLE.check_vectors(["a", "b"], [vector_of(b"b"), vector_of(b"a")])
    with pytest.raises(Wrong, match="1 embeddings for 2 inputs"):
        TABLE.check_vectors(["a", "b"], [vector_of(b"a")])
    with pytest.raises(Wrong, match="shape"):
        TABLE.check_vectors(["a", "b"], [vector_of(b"a"), None])


def test_the_hits_of_another_search_are_wrong() -> None:
    TABLE.check_hits("s", [{"id": "1", "score": 0.905}, {"id": "2", "score": 0.5}])
    for hits in (
        [{"id": "1", "score": 0.9}],
        [{"id": "1", "score": 0.9}, {"id": "2", "score": 0.4}],
        [{"id": "9", "score": 0.9}, {"id": "2", "score": 0.5}],
    ):
        with pytest.raises(Wrong):
            TABLE.check_hits("s", hits)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "table.npz", text_ms=2.5)
    read, figures = Expected.load(tmp_path / "table.npz")
    assert (read.keys, figures) == (TABLE.keys, {"text_ms": 2.5})
    assert (read.matrix == TABLE.matrix).all()


def test_every_user_asks_for_what_the_table_has() -> None:
    vectors = {key: vector_of(key.encode()) for key in (*TEXTS, *pictures())}
    expected = Expected(vectors, {name: [("1", 0.5)] for name in searches()})
    for user in USERS:
        requests = prepared(user, expected, "a model")
        assert len({request.body for request in requests}) == len(requests) > 1
        with pytest.raises(Exception, match=r"."):
            requests[0].check({})


def test_the_pictures_have_the_sizes_that_people_upload() -> None:
    sizes = sorted(len(data) for data in pictures().values())
    assert len(set(sizes)) == 24 and sizes[0] < 30_000 and sizes[-1] > 1_500_000


# The report.


def test_the_generator_s_share_is_stated_and_warned_of(tmp_path: Path) -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    rows = observed.held().judge(observed.samples, observed.spans)
    report = Report("a title", {}, rows, observed.samples, observed.spans)
    observed.samples.usages.append(Usage(1010, "generator", 0.5))
    observed.samples.usages.append(Usage(990, "generator", 9))  # before the run
    assert report.generator() == {"generator": 0.5} and report.warning() is None
    observed.samples.usages.append(Usage(1011, "generator", 1.3))
    assert "90 % of a core, so that it was the limit" in report.verdict()
    report.write(tmp_path)
    assert "generator 90 % of a core" in (tmp_path / SUMMARY).read_text()
    assert (tmp_path / PLOT).read_bytes().startswith(b"\x89PNG")


def test_the_report_says_what_was_violated_and_why(tmp_path: Path) -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    observed.add("image", 1010, 700, 11)
    observed.samples.add("text", "failed", 5, "/embed/text answered 500: out | of order")
    rows = observed.held().judge(observed.samples, observed.spans)
    report = Report("a title", {"a fact": "worth knowing"}, rows, observed.samples, observed.spans)
    assert not report.passed
    assert report.verdict() == "FAIL: a title\n- image p50: 11 ms, allowed is at most 10 ms"
    report.write(tmp_path)
    text = (tmp_path / SUMMARY).read_text()
    assert "**11 ms**, not ≤ 10 ms" in text and "worth knowing" in text
    assert r"text: /embed/text answered 500: out \| of order" in text


def test_a_run_without_a_judgement_has_not_passed(tmp_path: Path) -> None:
    report = Report("a title", {}, [], Samples(), [])
    assert not report.passed and "stopped before its end" in report.verdict()
    report.write(tmp_path)


def test_an_objective_says_figure_and_limit() -> None:
    low = Objective("after", "text", "rate", 3.21, 4.5, "/s", at_least=True)
    assert str(low) == "text rate (after): 3.21/s, allowed is at least 4.5/s" and not low.met
    assert str(Objective("", "text", "failed", 0.021, 0, "%")).endswith(
        "2.1 %, allowed is at most 0 %"
    )
    assert not Objective("", "text", "p50", math.nan, 5).met


# Runs, against a stand-in.


@dataclass
class Done:
    """A run that has ended."""

    status: int
    output: str
    reports: Path

    @property
    def violated(self) -> set[str]:
        return set(re.findall(r"^- (.*?)(?: \(.*\))?: ", self.output, re.M))


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
    return Done(done.returncode, done.stdout, reports)


@contextmanager
def stub(fault: str = "none") -> Iterator[Stub]:
    with Stub(fault).serving() as served:
        yield served


def test_a_service_that_keeps_everything_passes(tmp_path: Path) -> None:
    with stub() as served:
        served.key = "a-key"
        done = run(served, tmp_path, API_KEY="a-key,another")
    assert (done.status, done.violated) == (0, set()), done.output
    ending = ["PASS: shape steady, profile cpu", f"report: {tmp_path}"]
    assert done.output.rstrip().splitlines()[-2:] == ending
    assert served.seen["/images"] == 500
    assert all(served.seen[path] for path in ("/embed/text", "/embed/image", "/embed/images"))
    assert all(served.seen[path] for path in ("/embed/texts", "/search", "/route"))
    assert served.seen["/v1/embeddings"] and served.seen["/embed/image/upload"]
    written = {file.name for file in tmp_path.iterdir()}
    assert {SUMMARY, PLOT, "report.html", "stats_stats.csv"} <= written
    assert "a-key" not in "".join(file.read_text(errors="replace") for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("slow", {"text p50"}),
        ("swapping", {"text wrong"}),
    ],
)
def test_a_fault_is_found_and_named(fault: str, named: set[str], tmp_path: Path) -> None:
    with stub(fault) as served:
        done = run(served, tmp_path)
    assert done.status == 1, done.output
    assert named <= done.violated <= named | {f"{each.split()[0]} rate" for each in named}, (
        done.output
    )
    assert served.early == 0  # Retry-After was honoured
    if fault == "swapping":
        assert "that of another request" in (tmp_path / SUMMARY).read_text()


def test_one_failure_in_fifty_is_found_and_named(tmp_path: Path) -> None:
    with stub("failing") as served:
        done = run(served, tmp_path)
    assert done.status == 1, done.output
    figures = {name.split()[1] for name in done.violated}
    assert {"failed"} <= figures <= {"failed", "rate"}, done.output
    assert "answered 500" in (tmp_path / SUMMARY).read_text()


def test_a_service_that_stays_slow_after_a_spike_is_found(tmp_path: Path) -> None:
    with stub("tiring") as served:
        done = run(served, tmp_path, "--shape", "spike", "--rate", "15", "--seconds", "15")
    assert done.status == 1 and "all p50 after / before" in done.violated, done.output


def test_the_knee_of_a_service_with_a_known_capacity(tmp_path: Path) -> None:
    with stub("narrow") as served:  # 50 requests/s at the most
        done = run(served, tmp_path, "--shape", "ramp", "--rate", "50", "--seconds", "24")
    found = re.search(r"^knee: ([0-9.]+) requests/s$", done.output, re.M)
    assert done.status == 0 and found, done.output
    assert 25 <= float(found[1]) < 50
    assert re.search(r"^  above it, \w+ p95 .* ms, allowed is at most", done.output, re.M)


def test_bulk_images_come_beside_texts_and_a_busy_service_is_left_alone(tmp_path: Path) -> None:
    with stub("busy") as served:
        done = run(served, tmp_path, "--shape", "mixed", "--seconds", "12")
    assert done.status == 1 and "text answered 429" in done.violated, done.output
    assert served.refused and served.early == 0  # Retry-After was honoured
    assert "p95 beside bulk / texts alone" in (tmp_path / SUMMARY).read_text()
    pictures_asked = served.seen["/embed/image"] + served.seen["/embed/image/upload"] - 24
    assert pictures_asked > served.seen["/embed/text"] - 54 > 16


def test_a_deployment_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    done = run(Stub(), tmp_path)
    assert done.status == 1 and "does not answer GET /info" in done.output


def test_a_deployment_that_wants_a_key_is_said_to_do_so(tmp_path: Path) -> None:
    with stub() as served:
        served.key = "a-key"
        done = run(served, tmp_path, API_KEY="")
    assert done.status == 1 and "401" in done.output and "API_KEY" in done.output


def test_the_relative_profile_is_not_for_a_deployment(tmp_path: Path) -> None:
    with stub() as served:
        done = run(served, tmp_path, "--slo-profile", "ci")
    assert done.status == 1 and "relative to this machine" in done.output
    assert "Traceback" not in done.output


def test_a_weight_of_an_unknown_user_is_refused(tmp_path: Path) -> None:
    with stub() as served:
        done = run(served, tmp_path, "--weights", "texts=1")
    assert done.status == 2 and "text, image, batch, search, router, openai" in done.output


# Distributed, by the commands of the compose file.


def test_a_master_judges_what_its_workers_saw(tmp_path: Path) -> None:
    services = yaml.safe_load((ROOT / "loadtests" / "docker-compose.yml").read_text())["services"]
    port = str(free_port())
    with stub("swapping") as served:
        worker = subprocess.Popen(
            [
                sys.executable,
                *services["worker"]["command"][1:-1],
                *("127.0.0.1", "--master-port", port, "--loglevel", "ERROR"),
            ],
            cwd=ROOT,
        )
        script = services["master"]["command"][-1].replace("$$", "$")
        script = script.replace("exec python", f"exec {sys.executable}").strip()
        done = subprocess.run(
            ["sh", "-c", f"{script} --master-bind-port {port} --reports {tmp_path} --rate 40"],
            cwd=ROOT,
            env={
                **os.environ,
                **{"HOST": served.url, "ROUTER": "", "PROFILE": "cpu", "SHAPE": "steady"},
                **{"DURATION": "10", "GENERATORS": "1"},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
        )
        assert worker.wait(60) in (0, 1)
    found = Done(done.returncode, done.stdout, tmp_path)
    assert found.status == 1 and "text wrong" in found.violated, found.output
    assert served.seen["/route"] == 0
    summary = (tmp_path / SUMMARY).read_text()
    assert re.search(r"generator \| \S+_[0-9a-f]+ \d+ % of a core", summary), summary
