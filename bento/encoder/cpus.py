"""The CPUs of this process: their number, thread priorities, and torch's threads."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Final

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")  # "max 100000", or "150000 100000": 1.5 CPUs


def available_cpus(quota: Path = _QUOTA) -> int:
    """Return how many CPUs this process may use: the lower of its affinity and its quota.

    torch counts the CPUs of the host. On a host with 64 CPUs it would start 64 threads in a
    container with 2 CPUs.
    """
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        return max(1, min(count, int(allowed) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or no quota
        return count


def give_way(nice: int) -> None:
    """Add `nice` to the niceness of the calling thread, and of the threads that it starts later.

    This does nothing on systems other than Linux, which have no thread priorities.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        lowered = os.getpriority(os.PRIO_PROCESS, thread) + nice
        os.setpriority(os.PRIO_PROCESS, thread, min(lowered, 19))


def compute_on(cores: int) -> None:
    """Let torch compute on this many cores in the calling thread."""
    import torch

    # A thread's first use of torch sets its number of cores to the last number that any thread
    # set. Use torch now, so that a later use does not overwrite the call below.
    torch.get_num_threads()
    torch.set_num_threads(cores)
