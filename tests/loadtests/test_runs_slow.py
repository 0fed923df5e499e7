"""Load tests of more than 20 s against stubs: long shapes, and a silent service with a worker."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from tests.support.loadruns import SILENT, Done, distributed, local, running

pytestmark = [pytest.mark.service, pytest.mark.slow]

RUNS = {
    # Answers of 20 ms, one at a time, allow at most 50 requests/s.
    "narrow": local("narrow", "--shape", "ramp", "--rate", "50", "--seconds", "24"),
    "tiring": local("tiring", "--shape", "spike", "--rate", "15", "--seconds", "15"),
    "silent, distributed": distributed("silent", *SILENT),
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Done]]:
    with running(RUNS, tmp_path_factory.mktemp("runs")) as ended:
        yield ended


def test_a_ramp_finds_the_knee_of_a_service_with_known_capacity(
    done: Callable[[str], Done],
) -> None:
    ended = done("narrow")
    found = re.search(r"^knee: ([0-9.]+) requests/s$", ended.output, re.M)
    assert ended.status == 0, ended.output
    assert found, ended.output
    assert 25 <= float(found[1]) < 50
    assert re.search(r"^  above it: \w+ p95.* ms; the objective is at most", ended.output, re.M)


def test_a_service_that_stays_slow_after_a_spike_fails(done: Callable[[str], Done]) -> None:
    ended = done("tiring")
    assert ended.status == 1, ended.output
    assert "all p50 after / before" in ended.missed, ended.output


def test_a_service_that_stops_answering_fails_a_distributed_run(
    done: Callable[[str], Done],
) -> None:
    ended = done("silent, distributed")
    assert ended.status == 1, ended.output
    figures = {name.split()[1] for name in ended.missed}
    assert {"failed", "rate"} <= figures <= {"failed", "rate", "correct"}, ended.output
    assert "had no answer at the end of the run" in ended.summary
