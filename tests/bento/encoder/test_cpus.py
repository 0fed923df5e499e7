"""The number of CPUs of this process, and the priority of its threads."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from bento.encoder.cpus import available_cpus, give_way


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("100000 100000", 1), ("150000 100000", 1), ("50000 100000", 1), ("max 100000", None)],
)
def test_the_quota_of_a_container_limits_the_cpus(
    tmp_path: Path, quota: str, cpus: int | None
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    without = available_cpus(tmp_path / "none")
    assert available_cpus(tmp_path / "cpu.max") == (cpus or without)


def test_a_quota_above_the_cpus_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("6400000 100000\n")
    assert available_cpus(tmp_path / "cpu.max") == available_cpus(tmp_path / "none")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, for thread priorities")
def test_only_the_calling_thread_gets_a_lower_priority() -> None:
    seen: list[int] = []

    def work() -> None:
        give_way(3)
        give_way(2)
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        give_way(50)  # 19 is the lowest priority
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [min(before + 5, 19), 19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
