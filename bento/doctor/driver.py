"""Choose the set of packages that runs on this machine's NVIDIA driver.

The Makefile runs this file before anything is installed: it needs the standard library only.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple


class PackageSet(NamedTuple):
    """A file of pinned packages, and the oldest NVIDIA driver that runs its torch on a GPU."""

    file: str
    driver: int


SETS: Final = {
    "12": PackageSet("constraints-cuda12.txt", 525),
    "13": PackageSet("constraints.txt", 580),
}


class Driver(NamedTuple):
    """The NVIDIA driver. `version` is empty if there is none."""

    version: str = ""
    library: bool = False  # a container without the NVIDIA runtime sees the driver, but lacks this

    @property
    def branch(self) -> int:
        return int(self.version.partition(".")[0] or 0)


def read(root: Path = Path("/"), load: Callable[[str], Any] = ctypes.CDLL) -> Driver:
    """Read the driver's version from its library, or else from its kernel module."""
    try:
        nvml = load("libnvidia-ml.so.1")
    except OSError:
        return Driver(_module_version(root))
    version = ctypes.create_string_buffer(96)
    if nvml.nvmlInit_v2() == 0:
        nvml.nvmlSystemGetDriverVersion(version, len(version))
        nvml.nvmlShutdown()
    return Driver(version.value.decode() or _module_version(root), library=True)


def _module_version(root: Path) -> str:
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    found = re.search(r"NVRM version:.*?\s(\d+\.[\d.]+)", text)
    return found[1] if found else ""


def choose(driver: Driver, cuda: str = "", installed: str = "") -> tuple[PackageSet, str]:
    """Return the set to install, and why.

    `cuda` decides by hand. Otherwise the `installed` file's set stays, if there is one. Raises
    `ValueError` for any `cuda` but "12", "13" and "".
    """
    if cuda:
        if cuda not in SETS:
            raise ValueError(
                f"CUDA={cuda}: allowed are CUDA=12 and CUDA=13; without it, the driver decides"
            )
        return SETS[cuda], f"CUDA={cuda} was given"
    for each in SETS.values():
        if each.file == installed:
            return each, "this set was chosen before"
    if not driver.version:
        return SETS["13"], "there is no NVIDIA driver"
    return SETS["12" if driver.branch < 580 else "13"], f"the NVIDIA driver is {driver.version}"


def problem(driver: Driver, chosen: PackageSet) -> tuple[str, str]:
    """Return why the chosen set cannot use a GPU here, and the remedy, or two empty strings."""
    if not driver.version:
        return "there is no NVIDIA driver", "install NVIDIA driver 535 or newer"
    if driver.branch < chosen.driver:
        other = "run make install CUDA=12, or " if driver.branch >= SETS["12"].driver else ""
        return (
            f"NVIDIA driver {driver.version} is too old for {chosen.file}, which needs "
            f"{chosen.driver}",
            f"{other}update the driver to {max(535, chosen.driver)} or newer",
        )
    if not driver.library:
        return (
            f"this container lacks the libraries of NVIDIA driver {driver.version}",
            "start it with the NVIDIA runtime (--gpus all, or docker-compose.gpu.yml)",
        )
    return "", ""


def main(argv: Sequence[str] | None = None, driver: Driver | None = None) -> int:
    """Print the chosen file, or check the driver, and return the exit status."""
    parser = argparse.ArgumentParser(
        description="Print the file of the packages that run on this machine's NVIDIA driver, and "
        "the reason on standard error.",
        epilog="Exit status: 0, 1 if --check finds that the service cannot run, 2 for a bad CUDA.",
    )
    parser.add_argument("--cuda", default="", help="12 or 13, to choose the set by hand")
    parser.add_argument("--installed", default="", help="the file of the installed set")
    parser.add_argument("--check", metavar="DEVICE", help="check the driver, and print no file")
    options = parser.parse_args(argv)
    driver = driver or read()
    try:
        chosen, reason = choose(driver, options.cuda, options.installed)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    found, remedy = problem(driver, chosen)
    too_old = 0 < driver.branch < chosen.driver
    if options.check is None:
        warning = f"; warning: {found}: {remedy}" if too_old else ""
        print(f"Installing {chosen.file}: {reason}{warning}.", file=sys.stderr)
        print(chosen.file)
        return 0
    device = options.check
    # Without a GPU, DEVICE=auto uses the CPU. A GPU whose driver is too old is an error.
    failed = bool(found) and (device.startswith("cuda") or (device == "auto" and too_old))
    if failed:
        text = f"DEVICE={device} cannot run here: {found}; {remedy}, or set DEVICE=cpu"
    elif found:
        text = f"DEVICE={device} uses the CPU: {found}; for a GPU, {remedy}"
    else:
        text = f"NVIDIA driver {driver.version} runs {chosen.file}"
    print(f"{text}.", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
