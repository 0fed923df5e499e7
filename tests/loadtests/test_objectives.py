"""The objectives: a run that misses one fails, and the right one is named."""

from __future__ import annotations

import math

import pytest

from loadtests.objectives import Judge, Objective, profiles
from loadtests.samples import Answer, Asked, Outcome, Samples
from loadtests.shapes import SHAPES
from loadtests.traffic.bodies import USERS
from tests.support.loadsamples import PROFILE, Observed


def test_a_run_that_meets_every_objective_misses_none() -> None:
    for name, shape in SHAPES.items():
        assert Observed(shape(10, 60)).missed() == [], name


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
def test_a_missed_objective_is_named_by_its_figure(
    outcome: Outcome, n: int, ms: float, figure: str
) -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    observed.add("image", 1010, n, ms, outcome)
    assert observed.missed() == [("", "image", figure)]


def test_429s_do_not_lower_the_latency() -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    observed.add("image", 1010, 700, 11)
    observed.add("image", 1010, 2000, 1, "busy")
    assert ("", "image", "p50") in observed.missed()


def test_figures_within_their_limits_are_not_named() -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    observed.add("image", 1010, 500, 11)
    observed.add("text", 1010, 5, 1, "busy")
    assert observed.missed() == []


def test_skipped_requests_lower_the_rate() -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    observed.samples.asked.append(Asked(1030, "image", 140))  # of 580 + 140
    assert observed.missed() == []
    observed.samples.asked.append(Asked(1030, "image", 10))
    assert observed.missed() == [("", "image", "rate")]


def test_skipped_requests_are_spread_over_the_time_they_were_due() -> None:
    samples = Samples()
    samples.ask("text", 4.5, 9)
    now = max(each.at for each in samples.asked)
    assert samples.offered("text", now - 8.5, now + 1) == pytest.approx(4.5)
    assert 1.5 < samples.offered("text", now - 4, now + 1) < 3


def test_unanswered_requests_lower_the_rate() -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    observed.drop("text", 1002, 1016)  # 14 s of 58 s
    assert observed.missed() == [("", "text", "rate")]
    observed.drop("text", 1002, 1060)
    assert ("", "text", "correct answers") in observed.missed()


def test_calibrated_times_are_multiples_of_the_unit() -> None:
    observed = Observed(SHAPES["steady"](20, 60))
    stricter = Judge(PROFILE, observed.shape, ("text", "image"), unit_ms=0.5)
    rows = stricter.objectives(observed.samples, observed.spans)
    assert [(row.user, row.figure, row.limit) for row in rows if not row.met] == [
        ("text", "p50", 5.0),
        ("image", "p50", 5.0),
    ]


def test_the_latency_must_recover_after_a_spike() -> None:
    observed = Observed(SHAPES["spike"](20, 60))
    after = observed.spans[-1]
    for second in range(20):
        observed.add("text", after.start + second, 12, 9.95)
        observed.add("image", after.start + second, 12, 9.95)
    assert observed.missed() == [("", "all", "p50 after / before")]


def test_only_failures_count_during_a_spike() -> None:
    observed = Observed(SHAPES["spike"](20, 60))
    observed.add("text", observed.spans[1].start + 5, 500, 900)
    observed.add("text", observed.spans[1].start + 5, 500, 1, "busy")
    observed.add("text", observed.spans[2].start + 5, 5, 1, "failed")  # settling
    assert observed.missed() == []
    observed.add("text", observed.spans[1].start + 5, 1, 1, "failed")
    assert observed.missed() == [("10 times", "text", "failed")]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_to_another_request_always_fails_the_run(shape: str) -> None:
    observed = Observed(SHAPES[shape](10, 60))
    settling = observed.spans[2].start + 5 if shape == "spike" else 0
    for at in (observed.spans[0].start - 1, observed.spans[0].start, settling):
        observed.samples.answers = [Answer(at, "text", "wrong", 9), *observed.samples.answers]
    assert ("", "text", "wrong") in observed.missed()


def test_a_soak_that_gets_slower_fails() -> None:
    observed = Observed(SHAPES["soak"](20, 80))
    for second in range(20):
        observed.add("text", observed.spans[-1].start + second, 30, 9.95)
    assert observed.missed() == [("", "all", "p50 last quarter / first quarter")]


def test_texts_that_wait_for_bulk_images_fail() -> None:
    observed = Observed(SHAPES["mixed"](20, 60))
    observed.add("image", observed.spans[1].start + 5, 500, 900)
    assert observed.missed() == []  # the latency of bulk images has no limit
    observed.add("text", observed.spans[1].start + 5, 30, 37)
    assert observed.missed() == [("", "text", "p95 beside bulk / texts alone")]


def test_the_knee_is_the_last_step_before_a_missed_objective() -> None:
    observed = Observed(SHAPES["ramp"](20, 60))
    step = observed.spans[3]
    observed.add("image", step.start + 3, 8, 21)
    knee, missed = observed.judge().climb(observed.samples, observed.spans)
    assert knee == observed.spans[2].phase.rate == pytest.approx(10 * 1.25**2)
    assert [(row.phase, row.user, row.figure) for row in missed] == [("19.5/s", "image", "p95")]
    assert observed.missed() == []  # the knee is above the profile's rate


def test_a_knee_below_the_profiles_rate_fails() -> None:
    observed = Observed(SHAPES["ramp"](20, 60))
    observed.drop("text", observed.spans[0].start, observed.spans[0].end)
    assert observed.missed() == [("", "all", "knee")]


def test_every_profile_has_an_objective_and_a_weight_for_every_user() -> None:
    assert set(profiles()) == {"ci", "cpu", "gpu"}
    for profile in profiles().values():
        assert set(profile.objectives) == set(profile.weights) == set(USERS)


def test_an_objective_shows_its_figure_and_its_limit() -> None:
    low = Objective("after", "text", "rate", 3.21, 4.5, "/s", at_least=True)
    assert str(low) == "text rate (after): 3.21/s; the objective is at least 4.5/s"
    assert not low.met
    failed = Objective("", "text", "failed", 0.021, 0, "%")
    assert str(failed) == "text failed: 2.1 %; the objective is at most 0 %"
    assert not Objective("", "text", "p50", math.nan, 5).met
