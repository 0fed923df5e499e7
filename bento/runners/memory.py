"""Return freed memory to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def trim() -> None:
    """Return freed memory to the system, where libc can do so.

    glibc keeps freed buffers of tens of megabytes for later ones. Those of large pictures would
    stay for good.
    """
    if release := _malloc_trim():
        release(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return None
