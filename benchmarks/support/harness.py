"""What the benchmarks share: the model, the inputs, a served service, and the report."""

from __future__ import annotations

import argparse
import http.client
import importlib.metadata
import io
import json
import math
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil  # type: ignore[import-untyped]
from PIL import Image

ROOT: Final = Path(__file__).resolve().parents[2]
_CHECKPOINTS: Final = ROOT / ".data" / "benchmarks"
_OPENAI_PREPROCESS: Final = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
_START_SECONDS: Final = 180.0
_STOP_SECONDS: Final = 60.0

_SUBJECTS: Final = {
    "a red bicycle": "червоний велосипед",
    "two dogs": "дві собаки",
    "an old wooden boat": "старий дерев'яний човен",
    "a child with a balloon": "дитина з кулькою",
    "snowy mountains": "засніжені гори",
    "a black cat": "чорний кіт",
    "city lights": "вогні міста",
    "fresh bread": "свіжий хліб",
}
_ENDINGS: Final = {
    "": "",
    " in the snow": " у снігу",
    " at sunset, seen from above": " на заході сонця, вид згори",
    " by the river on a rainy day": " біля річки в дощовий день",
}
TEXTS: Final = tuple(subject + ending for ending in _ENDINGS for subject in _SUBJECTS)
"""32 different English queries of 2 to 12 words."""

UKRAINIAN: Final = tuple(
    subject + ending for ending in _ENDINGS.values() for subject in _SUBJECTS.values()
)
"""The same in Ukrainian; CLIP's tokenizer makes about three times as many tokens of them."""


def checkpoint(model: str) -> str:
    """Return a model as `MODEL_NAME` takes it, offline: `shapes`, or an OpenCLIP architecture.

    An architecture gets random weights, made once; how fast it is does not depend on them.
    """
    if model == "shapes":
        return f"local-dir:{ROOT / 'models' / 'shapes'}"
    folder = _CHECKPOINTS / model
    if not folder.exists():
        _make_checkpoint(model, folder)
    return f"local-dir:{folder}"


def _make_checkpoint(model: str, folder: Path) -> None:
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = open_clip.get_model_config(model)
    if config is None:
        raise SystemExit(f"--model {model}: allowed are shapes and open_clip.list_models()")
    say(f"making {model} with random weights, once")
    torch.manual_seed(0)
    weights = open_clip.create_model(model, pretrained=None).state_dict()
    _CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CHECKPOINTS) as temporary:
        made = Path(temporary) / "model"
        made.mkdir()
        file = made / "open_clip_model.safetensors"
        save_file({name: value.contiguous() for name, value in weights.items()}, file)
        file.chmod(0o644)  # the user of a container is another one
        described = {"model_cfg": config, "preprocess_cfg": _OPENAI_PREPROCESS}
        (made / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
        made.rename(folder)


def photo(seed: int, width: int, height: int) -> Image.Image:
    """Draw something that compresses as photographs do: gradients, blobs and fine noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    tilt = rng.uniform(-90, 90, (2, 3)).astype(np.float32)
    pixels = 128 + (x - 0.5)[..., None] * tilt[0] + (y - 0.5)[..., None] * tilt[1]
    for _ in range(8):
        (left, top), size = rng.random(2), rng.uniform(0.05, 0.25)
        blob = np.exp(-((x - left) ** 2 + (y - top) ** 2) / size**2).astype(np.float32)
        pixels += blob[..., None] * rng.uniform(-90, 90, 3).astype(np.float32)
    pixels += rng.normal(0, 9, (height, width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG") -> bytes:
    """Return an image as the bytes of a file; a JPEG has quality 85."""
    buffer = io.BytesIO()
    image.save(buffer, format, quality=85)
    return buffer.getvalue()


def photos(count: int) -> list[bytes]:
    """Return photo-like JPEGs of 320 x 240, the same every time."""
    return [encoded(photo(seed, 320, 240)) for seed in range(count)]


@dataclass(frozen=True)
class Server:
    """A running service and its process tree."""

    port: int
    process: psutil.Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON that a route answers with."""
        status, body = _get(self.port, path)
        if status != 200:
            raise RuntimeError(f"GET {path} answered {status}: {body[:200]!r}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process tree has used."""
        return self._sum(lambda process: sum(process.cpu_times()[:2]))

    def memory_bytes(self) -> int:
        """Return the memory that the process tree holds itself, without the files that it maps.

        What it maps others may map too, and then it is nobody's own, as torch is in tests.
        """
        return int(self._sum(_memory))

    @contextmanager
    def memory_samples(self) -> Iterator[list[int]]:
        """Sample the memory every 0.1 s while the block runs."""
        samples = [self.memory_bytes()]
        stop = threading.Event()

        def sample() -> None:
            while not stop.wait(0.1):
                samples.append(self.memory_bytes())

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield samples
        finally:
            stop.set()
            thread.join()

    def _sum(self, figure: Callable[[psutil.Process], float]) -> float:
        total = 0.0
        for process in (self.process, *self.process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += figure(process)
        return total


def _memory(process: psutil.Process) -> float:
    info = process.memory_info()
    return float(info.rss - getattr(info, "shared", 0))


@contextmanager
def serving(target: str, **environment: str) -> Iterator[Server]:
    """Run `bentoml serve` in a process of its own until the block ends."""
    argv = [sys.executable, "-m", "bentoml", "serve", target]
    with running(argv, free_port(), "/readyz", **environment) as server:
        yield server


@contextmanager
def running(
    argv: Sequence[str], port: int, ready_path: str, **environment: str
) -> Iterator[Server]:
    """Run a service that takes `PORT` from its environment, from when `ready_path` answers."""
    defaults = {"BENTOML_DO_NOT_TRACK": "True", "QDRANT_ENABLED": "false", "PORT": str(port)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**os.environ, **defaults, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        server = Server(port, psutil.Process(process.pid))
        try:
            if ready := wait_for(server, ready_path):
                yield server
            if not ready or process.poll() is not None:
                log.seek(0)
                tail = log.read().decode(errors="replace")[-3000:]
                raise RuntimeError(f"{shlex.join(argv)} did not start, or ended early:\n{tail}")
        finally:
            _stop(server, process)


def wait_for(server: Server, path: str) -> bool:
    """Wait until a route answers 200; False when the process ended or took too long."""
    deadline = time.monotonic() + _START_SECONDS
    while server.process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        with suppress(OSError, http.client.HTTPException):
            if _get(server.port, path)[0] == 200:
                return True
        time.sleep(0.05)
    return False


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _stop(server: Server, process: subprocess.Popen[bytes]) -> None:
    tree = server.process.children(recursive=True)
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(tree, timeout=5)[1]:
        child.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest value that `percent` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def say(text: str) -> None:
    """Show progress."""
    print(text, file=sys.stderr, flush=True)


def parser(
    description: str | None, *, model: bool = True, seconds: tuple[float, float] | None = None
) -> argparse.ArgumentParser:
    """Return a parser with the arguments that benchmarks share.

    `seconds` are how long a step takes where it is not told, and with --quick.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="under a minute: a try, not a figure")
    if seconds:
        usual, quick = seconds
        made.add_argument(
            "--seconds",
            type=float,
            help=f"how long each step takes (default: {usual:g}; with --quick: {quick:g})",
        )
        made.set_defaults(usual_seconds=seconds)
    if model:
        made.add_argument(
            "--model",
            help="an OpenCLIP architecture, served with random weights, or shapes, the bundled "
            "model (default: ViT-B-32; with --quick: shapes)",
        )
        made.add_argument(
            "--device",
            choices=("auto", "cpu", "cuda"),
            default="auto",
            help="auto takes a GPU where there is one (default)",
        )
    return made


def parse(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments, and remember them for the report."""
    given = list(sys.argv[1:] if argv is None else argv)
    options = made.parse_args(given)
    options.argv = given
    if getattr(options, "model", "") is None:
        options.model = "shapes" if options.quick else "ViT-B-32"
    if getattr(options, "seconds", 0.0) is None:
        options.seconds = options.usual_seconds[options.quick]
    return options


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the variables that make a service serve the model on the device."""
    return {"MODEL_NAME": checkpoint(options.model), "DEVICE": options.device}


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a markdown table; floats keep three digits, None is a dash."""
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def table_of(columns: Mapping[str, str], records: Iterable[Mapping[str, Any]]) -> str:
    """Return a table of records: `columns` are their keys and how these are headed."""
    return table(list(columns.values()), [[row.get(key) for key in columns] for row in records])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def report(benchmark: str, options: argparse.Namespace, shown: str, results: Any) -> None:
    """Print a table and, as the last line, everything as JSON."""
    record = {
        "benchmark": benchmark,
        "command": shlex.join(["python", "-m", f"benchmarks.{benchmark}", *options.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "model": getattr(options, "model", None),
        "results": results,
    }
    print(f"{shown}\n{json.dumps(record)}", flush=True)


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    version = importlib.metadata.version
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "ram_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpu_name(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "open_clip": version("open_clip_torch"),
        "bentoml": version("bentoml"),
    }


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_name() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.partition("\n")[0].strip() or None
