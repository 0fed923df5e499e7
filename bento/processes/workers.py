"""The supervisor and its workers, as `bentoml serve` starts them, and how each ends."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from typing import Final

logger = logging.getLogger("vision_encoder")

# SIGTERM would end the supervisor with status 0, as if somebody had wanted it.
_GIVEN_UP: Final = signal.SIGUSR1
_LEAVE_SECONDS: Final = 30  # that a worker has for ending by itself

ending: Final = threading.Event()  # of this worker, which another replaces


def listen_for_workers() -> None:
    """Let this process, if it is the supervisor, end with status 1 when a worker gives up."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(_GIVEN_UP, _end_as_failed)


def give_up(why: str) -> None:
    """Say why nothing can be served, and stop: the supervisor too, if there is one."""
    logger.error("not serving: %s", why)
    if "BENTOML_RUNNER_MAP" in os.environ:  # started by `bentoml serve`
        os.kill(os.getppid(), _GIVEN_UP)


def end_worker(why: str) -> None:
    """Stop this worker, which can answer nothing more, so that its supervisor starts another."""
    logger.error("this worker ends: %s", why)
    ending.set()
    signal.alarm(_LEAVE_SECONDS)  # by the kernel, if a hanging device keeps it from going
    os.kill(os.getpid(), signal.SIGTERM)


def _end_as_failed(_signal: int, _frame: object) -> None:
    atexit.register(_exit_1)
    os.kill(os.getpid(), signal.SIGTERM)  # in good order: with its workers


def _exit_1() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
