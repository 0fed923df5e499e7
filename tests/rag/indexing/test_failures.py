"""What a run does when a picture, a file or the whole service fails."""

from __future__ import annotations

import json
import os
import threading
from hashlib import file_digest
from pathlib import Path
from typing import Any

import pytest
from rag.errors import StoreFull, StoreUnavailable

from bento.contract.errors import Busy
from rag.indexing.run import each, patiently
from router_client import VisionEncoderConnectionError
from tests.support.rag.library import Library, counts


def test_of_a_picture_that_cannot_be_indexed_all_places_are_told(library: Library) -> None:
    library.write(a="broken", b="broken", c="C")
    report = library.run()
    assert [Path(failure.path).name for failure in report.failures] == ["a.png", "b.png"]


def test_a_file_that_cannot_be_indexed_costs_the_others_nothing(library: Library) -> None:
    library.write(a="A", b="broken", c="")
    report = library.run()
    assert counts(report) == (1, 0, 0, 0)
    assert [(Path(f.path).name, f.why) for f in report.failures] == [
        ("c.png", "the file is empty"),
        ("b.png", "these bytes are not a picture"),
    ]


def test_of_a_batch_only_what_cannot_be_indexed_is_left_out(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library.backend, "batch", 4)
    library.write(a="A", b="broken 1", c="C", d="D", e="E", f="F", g="broken 2", h="H")
    manifest = library.top / "m.jsonl"
    lines = [
        {"path": f"{name}.png", "metadata": {"size": 2**64 if name == "e" else 1}}
        for name in "abcdefgh"
    ]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = library.run(manifest)
    assert counts(report) == (5, 0, 0, 0)
    assert [(Path(f.path).name, f.why[:20]) for f in report.failures] == [
        ("b.png", "these bytes are not "),
        ("e.png", "the payload of point"),
        ("g.png", "these bytes are not "),
    ]
    assert library.held().keys() == set("acdfh")
    assert sorted(library.encoder.embedded) == [b"A", b"C", b"D", b"F", b"H"]


def test_a_picture_that_breaks_stays_findable_as_it_was(library: Library) -> None:
    library.write(a="A")
    library.run()
    library.write(a="broken now")
    report = library.run()
    assert (counts(report), len(report.failures)) == ((0, 0, 0, 0), 1)
    assert library.held() == {"a": ["a"]}
    library.write(b="B")
    library.run()
    library.write(b="broken now")  # the same bytes as the other
    assert counts(library.run()) == (0, 0, 0, 0)
    assert library.held() == {"a": ["a"], "b": ["b"]}


def test_a_disk_that_fails_while_it_is_read_costs_one_picture(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write(a="A", b="B")

    def failing(file: Any, name: str) -> Any:
        if file.name.endswith("b.png"):
            raise OSError(5, "Input/output error")
        return file_digest(file, name)

    monkeypatch.setattr("rag.indexing.run.file_digest", failing)
    report = library.run()
    assert counts(report) == (1, 0, 0, 0)
    assert [failure.why for failure in report.failures] == ["cannot be read: Input/output error"]


def test_what_is_no_file_does_not_hang_the_run(library: Library) -> None:
    os.mkfifo(library.top / "pipe.png")
    library.write(a="A")
    assert counts(library.run()) == (1, 0, 0, 0)
    (failure,) = library.run(library.top / "pipe.png").failures
    assert failure.why == "is not a file"


def test_a_file_larger_than_any_service_takes_is_not_read(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.indexing.run.LARGEST_FILE", 3)
    library.write(a="A", b="large")
    report = library.run()
    assert [f.why for f in report.failures] == ["has 5 bytes; at most 3 are read"]


def test_what_concerns_all_stops_the_run_and_the_next_one_goes_on(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write(**{f"p{n}": f"{n}" for n in range(20)})
    index = library.backend.index
    left = threading.Semaphore(5)  # calls, each with two pictures

    def failing(*args: Any, **kwargs: Any) -> Any:
        if not left.acquire(blocking=False):
            raise StoreFull("the disk has 3 MB free")
        return index(*args, **kwargs)

    monkeypatch.setattr(library.backend, "index", failing)
    with pytest.raises(StoreFull, match="3 MB free"):
        library.run()
    monkeypatch.setattr(library.backend, "index", index)
    assert counts(library.run()) == (10, 0, 10, 0)
    assert len(library.encoder.embedded) == 20


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (Busy("busy", retry_after=7), [7.0, 7.0, 7.0, 8.0, 15.0, 15.0, 15.0]),
        (Busy("busy", retry_after=700), [15.0] * 4),
        (
            VisionEncoderConnectionError("away", code="unreachable"),
            [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0],
        ),
        (StoreUnavailable("down"), [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]),
        (StoreFull("3 MB free"), []),
        (ValueError("a bug"), []),
    ],
)
def test_a_busy_service_is_waited_for_and_not_for_ever(
    error: Exception, waits: list[float]
) -> None:
    slept: list[float] = []

    def failing() -> None:
        raise error

    with pytest.raises(type(error)):
        patiently(failing, sleep=slept.append)
    assert slept == waits
    answers = iter([Busy("busy"), "done"])

    def once() -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(once, sleep=slept.append) == "done"


def test_who_stops_does_not_wait_for_a_busy_service() -> None:
    stop = threading.Event()
    stop.set()
    asked: list[int] = []

    def failing() -> None:
        asked.append(1)
        raise Busy("busy")

    with pytest.raises(Busy):
        patiently(failing, sleep=stop.wait)
    assert len(asked) == 1
    stop.clear()
    running = each(str, range(100), 2, stop)
    next(running)
    running.close()  # as when the run fails, or Ctrl-C is pressed
    assert stop.is_set()
    stop.clear()
    assert len(list(each(str, range(9), 2, stop))) == 9
    assert not stop.is_set()
