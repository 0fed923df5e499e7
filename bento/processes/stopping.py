"""Graceful shutdown: new connections are refused while accepted requests are answered."""

from __future__ import annotations

import signal
import socket
import threading
from types import FrameType

import psutil  # type: ignore[import-untyped]


def refuse_once_stopping(*, unless: threading.Event) -> None:
    """Let new connections be refused as soon as SIGTERM comes, before what runs is finished.

    The supervisor keeps its listening socket open until its worker has ended: who connects
    meanwhile would wait for nothing. Not where other workers listen on that socket too: one that
    is still serving comes to no end of accepting from it. A worker that ends `unless` the service
    does leaves the socket to its successor. To be called in the main thread, when the server has
    set its own handler.
    """
    finish = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        if not unless.is_set():
            for listener in _listeners():
                listener.shutdown(socket.SHUT_RDWR)
        if callable(finish):
            finish(number, frame)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def _listeners() -> list[socket.socket]:
    connections = psutil.Process().net_connections("tcp")
    return [
        socket.socket(fileno=socket.dup(one.fd))
        for one in connections
        if one.status == psutil.CONN_LISTEN
    ]
