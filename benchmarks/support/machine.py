"""The machine and the versions that a result was measured with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]

_CPU_INFO: Final = Path("/proc/cpuinfo")
_FLAGS: Final = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "AMX": {"amx_tile"},
    "BF16": {"avx512_bf16", "amx_bf16"},
}
_PACKAGES: Final = {
    "torch": "torch",
    "open_clip": "open_clip_torch",
    "bentoml": "bentoml",
    "qdrant-edge": "qdrant-edge-py",
}


def hardware(load: float) -> str:
    """Describe this machine in words. `load` is the load average when the benchmark started."""
    try:
        info = _CPU_INFO.read_text()
    except OSError:  # only Linux has the file
        info = ""
    return "; ".join(
        (
            cpu(info),
            f"{psutil.virtual_memory().total / 2**30:.0f} GB of memory",
            gpu_name() or "no GPU",
            f"load average {load:.1f} at the start",
        )
    )


def cpu(info: str) -> str:
    """Return the CPU's name, cores and instruction sets. `info` is the text of /proc/cpuinfo."""
    names = re.findall(r"(?m)^model name\s*: (.*)$", info)
    name = names[0].strip() if names else platform.processor() or platform.machine()
    flags = set(" ".join(re.findall(r"(?m)^flags\s*: (.*)$", info)).split())
    sets = [name for name, any_of in _FLAGS.items() if flags & any_of]
    return ", ".join((name, f"{os.cpu_count()} cores", *sets))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name, package in _PACKAGES.items():
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(package)
    return found


def gpu_name() -> str | None:
    """Return the name of the first NVIDIA GPU; None if there is none."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.partition("\n")[0].strip() or None
