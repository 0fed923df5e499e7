"""The checks of `bento.doctor`, one for each requirement of the service."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

import httpx

from bento.doctor.probe import ANSWER_SECONDS, Seen, look, run, words
from bento.encoder.devices import (
    Problem,
    build_problem,
    card_problem,
    driver_problem,
    index,
    uses_gpu,
)
from bento.settings import Settings
from rag.settings import RagSettings

CHECK_SECONDS: Final = 20.0
OVERHEAD: Final = 1_000_000_000  # bytes for the framework and the activations of a batch
LOADING: Final = 8  # bytes of memory per parameter: the model and the checkpoint, both in float32
ON_GPU: Final = 4  # bytes of GPU memory per parameter
MIN_DISK: Final = 256 << 20  # free bytes that the embedded store needs
_OFFLINE: Final = (
    "copy the cache (HF_HOME) from a machine that has them, set MODEL_PRETRAINED to a checkpoint "
    "file, or set MODEL_NAME=local-dir:PATH (the bundled model is local-dir:models/shapes)"
)
_LOCAL: Final = "set MODEL_NAME=local-dir:PATH to a folder with open_clip_config.json and weights"
_ALLOWED: Final = (
    "set MODEL_NAME and MODEL_PRETRAINED to a pair from open_clip.list_pretrained(), "
    "MODEL_PRETRAINED to a checkpoint file, or MODEL_NAME to hf-hub:org/name or local-dir:PATH"
)


class Finding(NamedTuple):
    """The result of a check, and a remedy if it failed."""

    status: Literal["ok", "failed", "not_needed"]
    found: str
    remedy: str = ""


def available_ram(root: Path = Path("/")) -> int:
    """Return the available memory in bytes, or the container's limit if that is lower."""
    amounts = []
    try:
        kilobytes = re.search(r"MemAvailable:\s+(\d+)", (root / "proc/meminfo").read_text())
        amounts.append(int(kilobytes[1]) * 1024 if kilobytes else 0)
    except OSError:  # not Linux
        amounts.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2, v1
        try:
            amounts.append(int((root / "sys/fs/cgroup" / limit).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(amounts)


@dataclass(frozen=True)
class Machine:
    """The sources of the checks' data. The defaults examine this machine."""

    python: tuple[int, ...] = sys.version_info[:3]
    look: Callable[[str, str, str], Seen] = look
    ram: Callable[[], int] = available_ram
    which: Callable[[str], str | None] = shutil.which
    run: Callable[[Sequence[str]], tuple[int | None, str, str]] = run
    disk_free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
    transport: httpx.BaseTransport | None = None
    seconds: float = CHECK_SECONDS

    def ask(
        self, method: str, url: str, headers: dict[str, str] | None = None, *, proxied: bool = True
    ) -> httpx.Response:
        """Return the answer to an HTTP request, through the environment's proxy if `proxied`."""
        with httpx.Client(
            timeout=ANSWER_SECONDS,
            transport=self.transport,
            trust_env=proxied,
            headers=headers,
            verify=_tls(),
        ) as client:
            return client.request(method, url)


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # takes tens of milliseconds


def check_python(machine: Machine) -> Finding:
    """Check the version of Python."""
    found = ".".join(map(str, machine.python))
    if machine.python < (3, 11):
        return Finding("failed", found, "install Python 3.11 or newer (make install PYTHON=...)")
    return Finding("ok", found)


def check_driver(device: str, seen: Seen) -> Finding:
    """Check that there is an NVIDIA driver, and that it has a GPU."""
    found = f"driver {seen.driver}: {', '.join(seen.gpus)}"
    problem = driver_problem(seen)
    if seen.torch_error and seen.gpus:  # the driver works; torch was not there to ask it
        problem = None
    if seen.driver_error:
        found = "torch can use the GPU"
        problem = problem and problem._replace(found=f"{problem.found}: {seen.driver_error}")
    return _gpu(device, seen, found, problem)


def check_cuda(device: str, seen: Seen) -> Finding:
    """Check that the driver supports the CUDA version that torch is built for."""
    if seen.torch_error:
        return Finding("failed", f"torch cannot be imported: {seen.torch_error}", "make install")
    found = f"torch {seen.torch} is built for CUDA {seen.cuda}"
    return _gpu(device, seen, found, build_problem(seen))


def check_torch(device: str, seen: Seen) -> Finding:
    """Check that torch sees the GPU that DEVICE names, and can compute on it."""
    found = f"torch sees {len(seen.devices)}: {', '.join(seen.devices)}"
    problem = card_problem(seen, device)
    if problem and (driver_problem(seen) or build_problem(seen)):
        problem = Problem(problem.found, "fix the GPU driver and CUDA, above")
    elif not problem and seen.product_error:
        what = f"{seen.devices[index(device)]} cannot compute: {seen.product_error}"
        problem = Problem(what, "check nvidia-smi and dmesg (Xid), and restart the machine")
    elif uses_gpu(seen, device):
        found += f"; cuda:{index(device)} can compute"
    return _gpu(device, seen, found, problem)


def _gpu(device: str, seen: Seen, found: str, problem: Problem | None) -> Finding:
    if not uses_gpu(seen, device):
        found = problem.found if problem else found
        return Finding("not_needed", f"{found}; DEVICE={device} uses the CPU")
    if problem:
        return Finding("failed", problem.found, f"{problem.remedy}, or set DEVICE=cpu")
    return Finding("ok", found)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def check_memory(settings: Settings, seen: Seen, machine: Machine) -> Finding:
    """Check that memory, and GPU memory if it is used, can hold the model of each worker."""
    on_gpu = uses_gpu(seen, settings.device)
    places = [("memory", machine.ram(), LOADING * seen.parameters + OVERHEAD)]
    if on_gpu:
        places.append(("GPU memory", seen.free, ON_GPU * seen.parameters + OVERHEAD))
    if not seen.parameters:
        available = ", ".join(f"{free / 1e9:.1f} GB of {what}" for what, free, _ in places)
        found = f"the memory that {settings.model_name} needs is unknown; {available} available"
        return Finding("not_needed", found)
    found = ", ".join(
        f"{free / 1e9:.1f} GB of {what} available, {settings.workers * each / 1e9:.1f} GB needed"
        for what, free, each in places
    )
    found += f" (WORKERS={settings.workers}, {seen.parameters / 1e6:.1f} M parameters each)"
    if on_gpu and not seen.free:
        return Finding("failed", found, "fix the GPU driver and CUDA, above")
    if any(free < settings.workers * each for _, free, each in places):
        return Finding(
            "failed", found, "free some memory, lower WORKERS, or choose a smaller model"
        )
    return Finding("ok", found)


def check_container(seen: Seen, machine: Machine) -> Finding:
    """Check for docker or podman, which the service itself does not need."""
    silent = []
    for name, version in (("docker", "{{.Server.Version}}"), ("podman", "{{.Client.Version}}")):
        if not machine.which(name):
            continue
        status, output, said = machine.run([name, "version", "--format", version])
        if status == 0:
            found = f"{name} {output.strip()}"
            if name == "docker" and seen.gpus:
                tools = filter(machine.which, ("nvidia-container-runtime", "nvidia-ctk"))
                found += f" with {next(tools, 'neither nvidia-container-runtime nor nvidia-ctk')}"
            return Finding("ok", found)
        silent.append(f"{name} does not answer ({said})")
    found = "; ".join(silent) or "neither docker nor podman found"
    return Finding("not_needed", f"{found}; only make image and compose need it")


def check_weights(settings: Settings, seen: Seen, machine: Machine) -> Finding:
    """Check that the weights and the tokenizer are in the cache, or can be downloaded."""
    name = f"MODEL_NAME={settings.model_name} MODEL_PRETRAINED={settings.model_pretrained}"
    if seen.model_error or seen.torch_error:
        local = settings.model_name.startswith("local-dir:")
        remedy = "make install" if seen.torch_error else _LOCAL if local else _ALLOWED
        return Finding("failed", f"{name}: {seen.model_error or seen.torch_error}", remedy)
    if not seen.lacking:
        return Finding("ok", seen.weights)
    missing = f"{name}: {seen.lacking} not in the cache"
    if not seen.source:
        return Finding("failed", f"{missing}, and HF_HUB_OFFLINE forbids downloads", _OFFLINE)
    try:
        status = machine.ask("HEAD", seen.source).status_code
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Finding(
            "failed", f"{missing}, and {seen.source} does not answer: {words(error)}", _OFFLINE
        )
    if status >= 500:
        return Finding("failed", f"{missing}, and {seen.source} answers {status}", _OFFLINE)
    return Finding("ok", f"{missing}; the first start downloads them from {seen.source}")


def check_qdrant(qdrant: RagSettings, workers: int, machine: Machine) -> Finding:
    """Check the Qdrant server, or the folder of the embedded store."""
    if not qdrant.qdrant_enabled:
        return Finding("not_needed", "QDRANT_ENABLED=false: the service has no search")
    if qdrant.qdrant_host:
        return _server(qdrant, machine)
    path, room = qdrant.qdrant_path, "set QDRANT_PATH to a writable folder"
    if workers > 1:
        found = f"WORKERS={workers}: several workers cannot share the embedded store at {path}"
        return Finding("failed", found, "set WORKERS=1, or set QDRANT_HOST to use a Qdrant server")
    try:
        folder = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        with tempfile.TemporaryFile(dir=folder):
            free = machine.disk_free(folder)
    except OSError as error:
        return Finding("failed", f"{path} is not writable: {error.strerror}", room)
    found = f"embedded store at {path}, {free >> 20} MB free"
    if free <= MIN_DISK:
        return Finding("failed", found, f"free {MIN_DISK >> 20} MB of disk, or move QDRANT_PATH")
    return Finding("ok", found)


def _server(qdrant: RagSettings, machine: Machine) -> Finding:
    """Check a Qdrant server, connecting as `rag.store.server.store` does."""
    try:
        scheme, host = qdrant.server()
    except ValueError:
        remedy = "set it to a host name or address, optionally with http:// or https://"
        return Finding("failed", f"QDRANT_HOST={qdrant.qdrant_host} is not a host", remedy)
    key = qdrant.key
    url = f"{scheme}://{host}:{qdrant.qdrant_port}"
    try:
        ready, root, listed = (
            machine.ask("GET", url + path, {"api-key": key} if key else None)
            for path in ("/readyz", "/", "/collections")
        )
        refused = {401, 403} & {answer.status_code for answer in (ready, root, listed)}
        version = "" if refused else str(root.json()["version"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        return Finding(
            "failed",
            f"no Qdrant server answers at {url}: {words(error)}",
            "start it (docker run -p 6333:6333 -p 6334:6334 qdrant/qdrant), or correct QDRANT_HOST "
            "and QDRANT_PORT (with an API key, https is used unless QDRANT_HOST has http://)",
        )
    if refused:
        found = f"{url} rejects {'QDRANT_API_KEY' if key else 'calls without an API key'}"
        return Finding("failed", found, "set QDRANT_API_KEY to the key of that server")
    if _version(version)[:2] < (1, 16):
        return Finding("failed", f"Qdrant {version} at {url}", "update Qdrant to 1.16 or newer")
    if ready.status_code != 200:
        found = f"{url}/readyz answers {ready.status_code}"
        return Finding("failed", found, "wait until Qdrant is ready, or check its log")
    grpc = (host.strip("[]"), qdrant.qdrant_grpc_port)
    try:
        socket.create_connection(grpc, ANSWER_SECONDS).close()
    except OSError as error:
        found = (
            f"Qdrant {version} at {url}, but gRPC port {grpc[1]} does not answer: {words(error)}"
        )
        return Finding("failed", found, "publish that port too, or correct QDRANT_GRPC_PORT")
    return Finding("ok", f"Qdrant {version} at {url}")


def check_port(settings: Settings, machine: Machine) -> Finding:
    """Check that the service can listen on its port, or already does."""
    host, port = settings.host, settings.port
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probing:
            probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            probing.bind((host, port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            remedy = "set HOST to an address of this machine, and PORT to a port above 1023"
            found = f"the service cannot listen on {address}: {words(error)}"
            return Finding("failed", found, remedy)
    else:
        return Finding("ok", f"{address} is free")
    try:
        ready = machine.ask("GET", f"http://{address}/readyz", proxied=False)
        keys = settings.api_keys
        headers = {"Authorization": f"Bearer {keys[0]}"} if keys else None
        info = machine.ask("GET", f"http://{address}/info", headers, proxied=False)
        model = info.json()["model_name"] if ready.status_code == 200 else ""
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        model = ""
    if model:
        return Finding("ok", f"{address} is in use by a running vision encoder ({model})")
    remedy = "stop the program that uses it, or set PORT to another port"
    return Finding("failed", f"{address} is in use", remedy)
