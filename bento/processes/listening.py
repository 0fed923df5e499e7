"""The sockets that this worker listens on. `bentoml serve` opens them and passes them on."""

from __future__ import annotations

from typing import Any

import psutil  # type: ignore[import-untyped]


def listeners() -> list[Any]:
    """Return psutil's description of each TCP socket that this process listens on."""
    opened = psutil.Process().net_connections("tcp")
    return [one for one in opened if one.status == psutil.CONN_LISTEN]


def listening_url(host: str, port: int) -> str:
    """Return the URL at which this machine reaches the service.

    `bentoml serve --host` and `--port` override the settings `host` and `port`, which count only
    if this process does not listen.
    """
    for listener in listeners():
        host, port = listener.laddr
    if host in ("0.0.0.0", "::"):  # noqa: S104 - this line binds nothing
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
