"""Graceful shutdown: refuse new connections while the worker answers accepted requests."""

from __future__ import annotations

import signal
import socket
import threading
from types import FrameType

from bento.processes.listening import listeners


def refuse_once_stopping(*, unless: threading.Event) -> None:
    """Refuse new connections as soon as SIGTERM arrives, before accepted requests finish.

    The supervisor keeps the listening socket open until its worker has ended, so a client that
    connects meanwhile would wait in vain.

    Call this in the main thread of a service with one worker, after the server has installed its
    own handler. With several workers, a worker that still serves would
    try to accept from the closed socket forever.
    If `unless` is set, only this worker ends: the socket stays open for its successor.
    """
    finish = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        if not unless.is_set():
            for listener in listeners():
                socket.socket(fileno=socket.dup(listener.fd)).shutdown(socket.SHUT_RDWR)
        if callable(finish):
            finish(number, frame)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
