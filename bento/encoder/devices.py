"""Choose the device, and tell why torch cannot use a GPU and what to do."""

from __future__ import annotations

import ctypes
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from bento.contract.errors import ModelLoadError

logger = logging.getLogger("vision_encoder")

_NEEDED_DRIVERS: Final = {12: 535, 13: 580}  # by the CUDA version that torch is built for
_ONLY_IN_CUDA12: Final = ("sm_70",)  # architectures that the newest torch is not built for
_INSTALL_CUDA12: Final = "run make install CUDA=12 (for an image: take the tag cuda12)"


@dataclass(frozen=True)
class Gpus:
    """What torch and the NVIDIA driver report."""

    torch: str = ""
    cuda: str = ""  # the CUDA version that torch is built for; empty for a CPU build
    architectures: Sequence[str] = ()  # those that torch is built for, such as sm_86
    driver_cuda: str = ""  # the newest CUDA version of the driver's library; empty without one
    module: bool = False  # the driver's kernel module is loaded; every container sees it
    count: int = 0  # the GPUs that the driver lists and CUDA_VISIBLE_DEVICES allows
    devices: Sequence[str] = ()  # the names of those that torch can initialize
    capabilities: Sequence[str] = ()  # their compute capabilities, such as 8.6
    devices_error: str = ""  # why torch can initialize none


class Problem(NamedTuple):
    """Why torch cannot use a GPU, and what to do."""

    found: str
    remedy: str


def choose_device(wanted: str, gpus: Gpus | None = None) -> str:
    """Return the torch device for DEVICE. `auto` takes the first GPU, or the CPU if there is none.

    Raises `ModelLoadError` if torch cannot use the GPU that DEVICE names, or that `auto` finds.
    """
    if wanted == "cpu":
        return wanted
    gpus = gpus or look()
    if uses_gpu(gpus, wanted):
        if found := build_problem(gpus) or driver_problem(gpus) or card_problem(gpus, wanted):
            what, remedy = found
            raise ModelLoadError(f"DEVICE={wanted}: {what}; {remedy}, or set DEVICE=cpu")
        return "cuda" if wanted == "auto" else wanted
    if gpus.cuda and gpus.module and (found := driver_problem(gpus)):
        logger.warning("DEVICE=%s uses the CPU: %s; for a GPU, %s", wanted, *found)
    return "cpu"


def look(root: Path = Path("/"), load: Callable[[str], Any] = ctypes.CDLL) -> Gpus:
    """Return what torch and the NVIDIA driver report. This initializes CUDA."""
    import torch

    names, capabilities, error = [], [], ""
    with warnings.catch_warnings(action="ignore"):  # torch's advice names its own downloads
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            for i in range(torch.cuda.device_count()):
                gpu = torch.cuda.get_device_properties(i)
                names.append(gpu.name)
                capabilities.append(f"{gpu.major}.{gpu.minor}")
        except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as unusable:
            error = re.split(r"\. (?=[A-Z])|\n", str(unusable).strip())[0]  # without the advice
    cuda = torch.version.cuda or ""
    return Gpus(
        torch=str(torch.__version__),
        cuda=cuda,
        # torch.cuda.get_arch_list() is empty without a GPU
        architectures=(torch._C._cuda_getArchFlags() or "").split() if cuda else (),
        driver_cuda=_driver_cuda(load),
        module=(root / "proc/driver/nvidia/version").exists(),
        count=torch.cuda.device_count(),
        devices=names,
        capabilities=capabilities,
        devices_error=error,
    )


def _driver_cuda(load: Callable[[str], Any]) -> str:
    version = ctypes.c_int()
    try:
        load("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def uses_gpu(gpus: Gpus, device: str) -> bool:
    """Return whether DEVICE means a GPU: `auto` does if there is one, even one with a problem."""
    return device.startswith("cuda") or (device == "auto" and gpus.count > 0)


def index(device: str) -> int:
    """Return the number of the GPU that DEVICE names."""
    return int(device.partition(":")[2] or 0)


def driver_problem(gpus: Gpus) -> Problem | None:
    """Return what is wrong with the NVIDIA driver, whatever torch is installed."""
    counted = gpus.count or not gpus.cuda  # a CPU build of torch counts no GPU
    if gpus.devices or (gpus.driver_cuda and counted):
        return None
    if gpus.driver_cuda:
        return Problem(
            "the NVIDIA driver shows no GPU",
            "check that nvidia-smi lists it (restart the machine after an update of the driver), "
            "and that CUDA_VISIBLE_DEVICES does not hide it",
        )
    if gpus.module or gpus.count:
        return Problem(
            "this container lacks the libraries of the NVIDIA driver",
            "start it with the NVIDIA runtime (--gpus all, or docker-compose.gpu.yml), and with "
            "compute in NVIDIA_DRIVER_CAPABILITIES if that is set",
        )
    return Problem(
        "there is no NVIDIA driver", "install NVIDIA driver 535 or newer, and restart the machine"
    )


def build_problem(gpus: Gpus) -> Problem | None:
    """Return why the installed torch cannot use the driver."""
    if gpus.devices:
        return None
    if not gpus.cuda:
        return Problem(
            f"torch {gpus.torch} is the CPU build, without CUDA",
            "run make install (for an image: take the tag cuda12, or make image without CPU=1)",
        )
    built, driver = _major(gpus.cuda), _major(gpus.driver_cuda)
    if not driver or driver >= built:  # any driver for CUDA 12.x runs any torch for CUDA 12.y
        return None
    needed = _NEEDED_DRIVERS.get(built)
    update = f"update the NVIDIA driver to {f'{needed} or newer' if needed else 'the newest'}"
    return Problem(
        f"torch {gpus.torch} is built for CUDA {gpus.cuda}, but the NVIDIA driver is for CUDA "
        f"{gpus.driver_cuda} and too old",
        f"{_INSTALL_CUDA12}, or {update}" if driver == 12 else update,
    )


def card_problem(gpus: Gpus, device: str) -> Problem | None:
    """Return why torch cannot compute on the GPU that DEVICE names."""
    names, gpu = gpus.devices, index(device)
    if not names:
        return Problem(
            f"torch cannot use the GPU: {gpus.devices_error}",
            "check nvidia-smi and dmesg (Xid), and restart the machine",
        )
    if gpu >= len(names):
        return Problem(
            f"there is no {device}: torch sees {len(names)} ({', '.join(names)})",
            f"set DEVICE={' or '.join(f'cuda:{i}' for i in range(len(names)))}",
        )
    capability = gpus.capabilities[gpu]
    if not gpus.architectures or _has_code(gpus.architectures, capability):
        return None
    in_cuda12 = _major(gpus.cuda) > 12 and _has_code(_ONLY_IN_CUDA12, capability)
    return Problem(
        f"{names[gpu]} has compute capability {capability}, but torch {gpus.torch} is built for "
        f"{', '.join(gpus.architectures)}",
        _INSTALL_CUDA12 if in_cuda12 else "use a GPU with one of these",
    )


def _has_code(architectures: Sequence[str], capability: str) -> bool:
    """Return whether one is for this card: of the same major version, and not of a higher minor."""
    major, minor = map(int, capability.split("."))
    built = [re.fullmatch(r"sm_(\d+)(\d)[af]?", each) for each in architectures]
    return any(b and int(b[1]) == major and int(b[2]) <= minor for b in built)


def _major(version: str) -> int:
    return int(version.partition(".")[0] or 0)
