"""The CPUs of this process: their number, thread priorities, and torch's threads."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, TypeVar

T = TypeVar("T")

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


class AllCores:
    """The one thread of this process that computes on several cores of a CPU.

    torch gives each such thread an OpenMP team of its own. If the teams of a process have more
    threads than CPUs, libgomp lets their threads sleep between the layers of a model, and waking
    them doubles the time of a single text.

    Args:
        cores: how many cores to compute on.
        nice: the niceness of the thread.
    """

    def __init__(self, cores: int, nice: int = 0) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]]
        self._calls = SimpleQueue()
        self._lock = threading.Lock()
        self._beside = 0  # per-core batches that run now
        threading.Thread(
            target=self._work, args=(cores, nice), name="all-cores", daemon=True
        ).start()

    def run(self, call: Callable[..., T], *args: Any) -> T:
        """Return the result of a call on the thread, or raise its error."""
        future: Future[T] = Future()
        self._calls.put((future, call, args))
        return future.result()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Leave half of the cores to the calling thread, and to others in such a block.

        A team whose threads must share their cores waits for the last one after every layer.
        """
        with self._lock:
            self._beside += 1
        try:
            yield
        finally:
            with self._lock:
                self._beside -= 1

    def _work(self, cores: int, nice: int) -> None:
        give_way(nice)
        now = 0
        while True:
            future, call, args = self._calls.get()
            wanted = max(1, cores // 2) if self._beside else cores
            if wanted != now:  # setting it costs a millisecond
                compute_on(wanted)
                now = wanted
            try:
                future.set_result(call(*args))
            except BaseException as error:  # noqa: BLE001 - the caller of `run` gets it
                future.set_exception(error)
            del future, call, args  # otherwise they live until the next call
