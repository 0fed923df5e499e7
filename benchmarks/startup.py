"""Measure a cold start.

    python -m benchmarks.startup

It measures the time from `bentoml serve` to `/livez`, to `/readyz` and to the first embedding of a
text: for the checkout, a Bento and a container. For comparison a fresh interpreter imports torch;
imports torch, maps the weights and reads them; or loads them with OpenCLIP.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from statistics import median
from typing import Final

from benchmarks.support.command import environment, parse, parser, report, say
from benchmarks.support.record import table
from benchmarks.support.servers import Server, free_port, running, wait_for

_IN_CONTAINER: Final = "/opt/model"
_TORCH: Final = "import torch"
_MAP: Final = """
import sys, torch
from safetensors.torch import load_file
for weight in load_file(sys.argv[1] + "/open_clip_model.safetensors").values():
    weight.sum()
"""
_OPEN_CLIP: Final = """
import sys, open_clip
open_clip.create_model_from_pretrained("local-dir:" + sys.argv[1])
"""


def start(command: Sequence[str], port: int, variables: Mapping[str, str]) -> tuple[float, ...]:
    """Return the seconds to `/livez`, `/readyz` and the first answer."""
    began = time.perf_counter()
    with running(command, port, "/livez", **variables) as server:
        live = time.perf_counter() - began
        if not wait_for(server, "/readyz"):
            raise RuntimeError("/livez answered 200, but /readyz did not within the time limit")
        ready = time.perf_counter() - began
        _ask(server)
        return live, ready, time.perf_counter() - began


def _ask(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body, headers = json.dumps({"text": "a red circle"}), {"Content-Type": "application/json"}
    connection.request("POST", "/embed/text", body, headers)
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"/embed/text answered {response.status}: {response.read()[:200]!r}")
    connection.close()


def serve(target: str, variables: Mapping[str, str]) -> tuple[float, ...]:
    """Start the checkout (`service:VisionEncoder`) or a Bento; return its times as `start` does."""
    return start([sys.executable, "-m", "bentoml", "serve", target], free_port(), variables)


def contain(engine: str, image: str, variables: Mapping[str, str]) -> tuple[float, ...]:
    """Start a container with the model mounted into it; return its times as `start` does."""
    port, name = free_port(), f"startup-{free_port()}"
    folder = variables["MODEL_NAME"].removeprefix("local-dir:")
    given = {**variables, "MODEL_NAME": f"local-dir:{_IN_CONTAINER}", "PORT": str(port)}
    options = [f"--env={key}={value}" for key, value in given.items()]
    mounted = f"--volume={folder}:{_IN_CONTAINER}:ro"
    try:
        command = [engine, "run", "--rm", "--name", name, "--network=host", mounted, *options]
        return start([*command, "--env=HOST=127.0.0.1", image], port, {})
    finally:
        with suppress(subprocess.CalledProcessError):  # it has ended, as it should
            subprocess.run([engine, "kill", name], check=True, capture_output=True)


def interpreter(code: str, folder: str) -> tuple[float, ...]:
    """Return the seconds that a fresh interpreter takes to run some code."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, folder], check=True)
    return (time.perf_counter() - began,)


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--dtype", default="auto", help="auto measures at the start (default)")
    made.add_argument("--bento", metavar="TAG", help="also start this Bento")
    made.add_argument("--image", metavar="NAME", help="also start this image")
    made.add_argument(
        "--engine", default="podman", help="start the image with this engine (default: podman)"
    )
    options = parse(made, argv)
    variables = {**environment(options), "DTYPE": options.dtype}
    folder = variables["MODEL_NAME"].removeprefix("local-dir:")
    ways: dict[str, Callable[[], tuple[float, ...]]] = {}
    ways["the checkout"] = lambda: serve("service:VisionEncoder", variables)
    if options.bento:
        ways["the Bento"] = lambda: serve(options.bento, variables)
    if options.image:
        ways["the container"] = lambda: contain(options.engine, options.image, variables)
    floors = {
        "import torch": _TORCH,
        "import torch, map the weights and read them": _MAP,
        "import OpenCLIP, which loads the weights": _OPEN_CLIP,
    }
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in (*ways, *floors)}
    for run in range(1 if options.quick else 5):
        say(f"run {run + 1}")
        for name, way in ways.items():
            seconds[name].append(way())
        for name, code in floors.items():
            seconds[name].append(interpreter(code, folder))
    medians = {
        name: [median(times) for times in zip(*runs, strict=True)] for name, runs in seconds.items()
    }
    _, mapped, loaded = (medians[name][0] for name in floors)
    rows = [
        (name, *medians[name], medians[name][-1] / mapped, medians[name][-1] / loaded)
        for name in ways
    ]
    rows += [
        (name, None, None, medians[name][0], medians[name][0] / mapped, medians[name][0] / loaded)
        for name in floors
    ]
    columns = (
        "start of",
        "/livez s",
        "/readyz s",
        "first answer, or end, s",
        "over mapping",
        "over OpenCLIP",
    )
    report("startup", options, [table(columns, rows)], seconds)


if __name__ == "__main__":
    main()
