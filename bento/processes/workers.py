"""How the supervisor and the workers of `bentoml serve` end."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from functools import partial
from typing import Final

from circus.client import make_json  # type: ignore[import-untyped]
from circus.sighandler import SysHandler  # type: ignore[import-untyped]

logger = logging.getLogger("vision_encoder")

# SIGTERM would end the supervisor with status 0, as after a regular stop.
_FAILED: Final = signal.SIGUSR1
_LEAVE_SECONDS: Final = 30  # for a worker to end by itself
_LOOK_SECONDS: Final = 1.0  # between two looks whether the supervisor or a command has ended
_SUPERVISOR: Final = "VISION_ENCODER_SUPERVISOR"  # the variable with its process id

ending: Final = threading.Event()
"""Set when this worker ends and the supervisor will replace it."""


def supervise() -> None:
    """In the supervisor, end on SIGTERM at any moment, and with status 1 after `give_up`."""
    if threading.current_thread() is threading.main_thread():
        os.environ[_SUPERVISOR] = str(os.getpid())
        SysHandler.quit = _quit
        signal.signal(_FAILED, _end_as_failed)


def end_with_supervisor() -> None:
    """In a worker, end when the supervisor has ended without stopping it, as after `kill -9`.

    The worker would otherwise serve on, and keep the port from the next supervisor.
    """
    if supervisor := os.environ.get(_SUPERVISOR):
        watch = partial(_end_after, int(supervisor))
        threading.Thread(target=watch, name="watch-supervisor", daemon=True).start()


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


def _end_after(supervisor: int) -> None:
    while os.getppid() == supervisor:
        time.sleep(_LOOK_SECONDS)
    logger.error("the supervisor has ended, so this worker ends too")
    os.kill(os.getpid(), signal.SIGTERM)


def _quit(handler: SysHandler) -> None:
    """Stop the arbiter of circus, after the command that it is running.

    circus drops a command while another one runs, so a SIGTERM during the start would be lost.
    """
    controller = handler.controller

    def stop() -> None:
        if controller.arbiter._exclusive_running_command:
            controller.loop.call_later(_LOOK_SECONDS / 10, stop)
        else:
            controller.dispatch((None, make_json("quit")))

    controller.loop.add_callback_from_signal(stop)


def _end_as_failed(_signal: int, _frame: object) -> None:
    atexit.register(_exit_1)
    os.kill(os.getpid(), signal.SIGTERM)  # a graceful shutdown, which ends the workers too


def _exit_1() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
