"""The load tests can fail: each fault of a stand-in is found, and the right objective is named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import Response

from loadtests.objectives import Held, Limits, Objective, Profile, Span, profiles
from loadtests.reporting import PLOT, SUMMARY, TIMELINE, Report
from loadtests.samples import Answer, Asked, Outcome, Samples, Usage
from loadtests.shapes import SHAPES, Shape
from loadtests.traffic.bodies import USERS, prepared, searches
from loadtests.traffic.deployment import Deployment, Unusable
from loadtests.traffic.expected import Expected, Wrong
from loadtests.traffic.inputs import TEXTS, pictures
from tests.support.loadstub import Stub
from tests.support.rag.fakes import vector_of

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


def test_requests_that_could_not_be_sent_count_when_they_were_due() -> None:
    samples = Samples()
    samples.ask("text", 4.5, 9)
    now = max(each.at for each in samples.asked)
    assert samples.offered("text", now - 8.5, now + 1) == pytest.approx(4.5)
    assert 1.5 < samples.offered("text", now - 4, now + 1) < 3


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


@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_of_another_request_is_never_allowed(shape: str) -> None:
    observed = Observed(SHAPES[shape](10, 60))
    settling = observed.spans[2].start + 5 if shape == "spike" else 0
    for at in (observed.spans[0].start - 1, observed.spans[0].start, settling):
        observed.samples.answers = [Answer(at, "text", "wrong", 9), *observed.samples.answers]
    assert ("", "text", "wrong") in observed.violated()


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


# What a deployment must be.


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("alike", "the same embedding"),
        ("short", r"the shape \(15,\) .* embedding_dim is 16"),
        ("doubled", "the norm 2.000"),
    ],
)
def test_embeddings_that_cannot_be_right_are_not_expected(fault: str, said: str) -> None:
    refused = pytest.raises(Unusable, match=said)
    with Stub(fault).serving() as stub, Deployment(stub.url) as deployment, refused:
        deployment.expected(None, with_searches=False)


@pytest.mark.parametrize("answer", ["<html>", '{"a": 1}', "[]", "null"])
def test_a_host_that_is_no_vision_encoder_is_said_to_be_none(answer: str) -> None:
    async def info(request: Request) -> Response:
        return Response(answer)

    stub = Stub()
    stub._info = info  # type: ignore[method-assign]
    refused = pytest.raises(Unusable, match="is no vision encoder")
    with stub.serving(), Deployment(stub.url) as deployment, refused:
        deployment.info()


# The report.


def test_the_report_has_figures_over_time_and_the_generator_s_share(tmp_path: Path) -> None:
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
    rows = (tmp_path / TIMELINE).read_text().splitlines()
    assert rows[0] == "second,user,ok,busy,failed,wrong,p50_ms,p95_ms,p99_ms"
    assert rows[1] == "0,image,10,0,0,0,9.00,9.00,9.00" and len(rows) == 1 + 2 * 60
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
