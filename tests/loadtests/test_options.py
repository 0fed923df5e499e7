"""Options of a load test: those that are rejected at once, and how compose passes them on."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.__main__ import main
from tests.support.loadstub import Stub
from tests.support.paths import ROOT

pytestmark = pytest.mark.service


@pytest.fixture(autouse=True)
def _same_signal_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(stub: Stub, reports: Path, *arguments: str) -> int:
    options = ("--host", stub.url, "--router", stub.url, "--slo-profile", "cpu")
    return main([*options, "--reports", str(reports), *arguments])


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--slo-profile", "ci"), 1, "use --slo-profile cpu or gpu"),
        (("--slo-profile", "nope"), 2, "ci"),
        (("--shape", "nope"), 2, "steady"),
        (("--rate", "0"), 2, "0 is not a number above 0"),
        (("--weights", "texts=1"), 2, "the users are text, image, batch, search, router, openai"),
        (
            ("--weights", "text=0,image=0,batch=0,search=0,router=0,openai=0"),
            1,
            "all weights are 0",
        ),
        (("--host", "gpu-host:8001"), 2, "'gpu-host:8001' is not a URL"),
    ],
)
def test_invalid_options_are_rejected_before_a_request_is_sent(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    with Stub().serving() as stub, pytest.raises(SystemExit) as done:
        run(stub, tmp_path, *arguments)
    assert not stub.seen
    code = done.value.code
    if isinstance(code, str):  # Python prints it and ends with status 1
        assert status == 1
        assert message in code
    else:
        assert code == status
        assert message in capsys.readouterr().err


def test_a_reports_folder_that_cannot_be_written_is_rejected_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        Stub().serving() as stub,
        pytest.raises(SystemExit, match="cannot write to the reports' folder"),
    ):
        run(stub, tmp_path / "file" / "reports")
    assert not stub.seen


def test_an_unreachable_deployment_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Stub(), tmp_path) == 1
    assert "does not answer GET /info" in capsys.readouterr().err


def test_a_missing_key_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Stub().serving() as stub:
        stub.key = "a-key"
        assert run(stub, tmp_path) == 1
    error = capsys.readouterr().err
    assert "401" in error
    assert "Set API_KEY if the service requires a key" in error


def test_the_compose_file_passes_on_every_documented_variable() -> None:
    compose = (ROOT / "loadtests" / "docker-compose.yml").read_text()
    docs = (ROOT / "docs" / "loadtests.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z]+)` \| `--", docs, re.M))
    given = dict(re.findall(r"^      ([A-Z]+): \$\{([A-Z]+):", compose, re.M))
    assert documented == set(given.values()) - {"GENERATORS"}
    assert len(documented) == 7
    master = compose.partition("services:")[2]
    assert all(f"$${name}" in master or f"$${{{name}:" in master for name in given)
    variables = set(re.findall(r"[A-Z]+", re.findall(r"user: (.*) #", compose)[0]))
    assert variables == {"UID", "GID"}
    assert all(f'{name}="$(id -{name[0].lower()})"' in docs for name in variables)
