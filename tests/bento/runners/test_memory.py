"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys

import psutil  # type: ignore[import-untyped]
import pytest

from bento.runners.memory import trim

SIZE = 1000  # bytes of a block: glibc keeps small ones


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_is_returned() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    process = psutil.Process()
    gc.collect()
    blocks = [libc.malloc(SIZE) for _ in range(100_000)]
    for block in blocks:
        ctypes.memset(block, 1, SIZE)
    for block in blocks[:-1]:  # the last one keeps the heap from shrinking by itself
        libc.free(block)
    before = process.memory_info().rss
    trim()
    assert before - process.memory_info().rss > 50_000_000
    libc.free(blocks[-1])
