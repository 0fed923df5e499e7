"""The command `python -m router_client`: its arguments, and what it rejects before it serves."""

from __future__ import annotations

import pytest

from router_client.__main__ import main


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (["--config", "no-such.yml"], {}, "error: no-such.yml: "),
        (
            [],
            {"VISION_ENCODER_URL": "nonsense"},
            "error: invalid environment variable: VISION_ENCODER_URL: it must be an http://",
        ),
        ([], {"VISION_ENCODER_TIMEOUT": "0"}, "VISION_ENCODER_TIMEOUT=0: "),
        ([], {"API_KEY": "ключ"}, "error: the API key (API_KEY) has characters that an HTTP"),
        ([], {"VISION_ENCODER_URL": "http://[::1"}, "error: the address of the vision encoder"),
    ],
)
def test_invalid_rules_and_settings_are_one_line(
    options: list[str],
    environment: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("port", ["x", "0", "99999"])
def test_an_invalid_port_is_rejected(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--port", port])
    assert done.value.code == 2
    assert f"{port!r} is not a port number from 1 to 65535" in capsys.readouterr().err


def test_help_lists_routes_options_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    for word in ("POST /route", "--port", "9102", "--host", "VISION_ENCODER_URL"):
        assert word in shown
