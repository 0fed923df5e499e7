"""The URL of the socket that a process listens on."""

from __future__ import annotations

import socket

import pytest

from bento.processes.listening import listening_url


def test_the_bound_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bound = listener.getsockname()[1]
        assert listening_url("192.0.2.1", 8001) == f"http://127.0.0.1:{bound}"


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::1", "[::1]"),
        ("0.0.0.0", "localhost"),
        ("::", "localhost"),
    ],
)
def test_the_settings_are_told_if_the_process_does_not_listen(host: str, told: str) -> None:
    assert listening_url(host, 8001) == f"http://{told}:8001"
