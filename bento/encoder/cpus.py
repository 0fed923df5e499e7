"""How many CPUs this process and its threads may use, and which threads give way to others."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Final

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")  # "max 100000", or "150000 100000": 1.5 CPUs


def available_cpus(quota: Path = _QUOTA) -> int:
    """Return how many CPUs this process may use: its affinity, and its container's quota.

    torch counts the host's, so that a container of 2 CPUs on a host of 64 would start 64 threads.
    """
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        return max(1, min(count, int(allowed) // int(period)))
    except (OSError, ValueError):  # no cgroup v2 here, or no quota
        return count


def give_way(nice: int) -> None:
    """Lower the priority of the calling thread, and of the threads that it will start.

    It is lowered by `nice`, as `os.nice` does for a process. Only Linux has priorities of
    threads; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        lowered = os.getpriority(os.PRIO_PROCESS, thread) + nice
        os.setpriority(os.PRIO_PROCESS, thread, min(lowered, 19))


def compute_on(cores: int) -> None:
    """Let torch compute on so many cores in the calling thread."""
    import torch

    # when a thread first needs the number it takes the one that any thread has set last
    torch.get_num_threads()
    torch.set_num_threads(cores)
