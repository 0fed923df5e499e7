"""CPUs: how many this process may use, thread priorities, and torch's threads."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Final

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")  # "max 100000", or "150000 100000": 1.5 CPUs


def available_cpus(quota: Path = _QUOTA) -> int:
    """Return how many CPUs this process may use, by its affinity and its container's quota.

    torch counts the CPUs of the host, and would start 64 threads in a container of 2 CPUs on a
    host of 64.
    """
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        return max(1, min(count, int(allowed) // int(period)))
    except (OSError, ValueError):  # no cgroup v2 here, or no quota
        return count


def give_way(nice: int) -> None:
    """Lower the priority of the calling thread, and of the threads that it starts later.

    Adds `nice` to its niceness, as `os.nice` does for a process. Does nothing on systems other
    than Linux, which have no thread priorities.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        lowered = os.getpriority(os.PRIO_PROCESS, thread) + nice
        os.setpriority(os.PRIO_PROCESS, thread, min(lowered, 19))


def compute_on(cores: int) -> None:
    """Let torch compute on this many cores in the calling thread."""
    import torch

    # torch sets the number of a thread at its first use, to the last number that any thread set:
    # use it now, so that this does not overwrite the call below
    torch.get_num_threads()
    torch.set_num_threads(cores)
