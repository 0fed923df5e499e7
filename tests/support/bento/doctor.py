"""Simulated machines and servers for tests of the doctor."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bento.doctor.checks import Finding, Machine
from bento.doctor.probe import Seen

CPU = Seen(
    torch="2.15.0",
    cuda="13.2",
    architectures=["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
    parameters=428_000_000,
    weights="/cache/open_clip_model.safetensors",
    driver_error="NVML Shared Library Not Found",
    devices_error="Found no NVIDIA driver on your system",
)
GPU = replace(
    CPU,
    driver="580.95.05",
    driver_cuda="13.2",
    gpus=["NVIDIA H200"],
    driver_error="",
    count=1,
    devices=["NVIDIA H200"],
    capabilities=["9.0"],
    devices_error="",
    free=140_000_000_000,
)


def machine(seen: Seen = CPU, **others: Any) -> Machine:
    """Return a machine with 16 GB and no container engine, on which the probe has seen `seen`."""
    return replace(
        Machine(look=lambda *_: seen, ram=lambda: 16_000_000_000, which=lambda _: None), **others
    )


def failed(findings: dict[str, Finding]) -> set[str]:
    assert all(bool(f.remedy) == (f.status == "failed") for f in findings.values())
    return {name for name, finding in findings.items() if finding.status == "failed"}


class Loopback:
    """An HTTP server that answers each path from `answers`, and records its requests."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {f"/{path}": body for path, body in answers.items()}
        self.status: dict[str, int] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.command, self.path, self.headers["api-key"]))
                body = json.dumps(outer.answers.get(self.path)).encode()
                known = 200 if self.path in outer.answers else 404
                self.send_response(outer.status.get(self.path, known))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
