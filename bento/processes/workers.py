"""How the supervisor and the workers of `bentoml serve` end."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from typing import Final

logger = logging.getLogger("vision_encoder")

# SIGTERM would end the supervisor with status 0, as after a regular stop.
_FAILED: Final = signal.SIGUSR1
_LEAVE_SECONDS: Final = 30  # for a worker to end by itself

ending: Final = threading.Event()
"""Set when this worker ends and the supervisor will replace it."""


def listen_for_workers() -> None:
    """In the supervisor, exit with status 1 when a worker calls `give_up`."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(_FAILED, _end_as_failed)


def give_up(reason: str) -> None:
    """Log why the service cannot start, and stop the supervisor, if there is one."""
    logger.error("the service cannot start: %s", reason)
    if "BENTOML_RUNNER_MAP" in os.environ:  # set by `bentoml serve`
        os.kill(os.getppid(), _FAILED)


def end_worker(reason: str) -> None:
    """Stop this worker, so that the supervisor replaces it."""
    logger.error("this worker ends: %s", reason)
    ending.set()
    signal.alarm(_LEAVE_SECONDS)  # the kernel ends the worker if a hanging device blocks its exit
    os.kill(os.getpid(), signal.SIGTERM)


def _end_as_failed(_signal: int, _frame: object) -> None:
    atexit.register(_exit_1)
    os.kill(os.getpid(), signal.SIGTERM)  # a graceful shutdown, which ends the workers too


def _exit_1() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
