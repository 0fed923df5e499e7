"""Failures of one picture, of one file, and of the whole service."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from bento.contract.errors import Busy, StoreFull, StoreUnavailable
from rag.indexing.bulk import each
from rag.indexing.failures import IndexingError
from rag.indexing.files import content_hash
from rag.indexing.retrying import patiently
from router_client import VisionEncoderConnectionError
from tests.support.rag.library import Library, counts


def test_all_paths_of_a_picture_that_cannot_be_indexed_are_reported(library: Library) -> None:
    library.write(a="broken", b="broken", c="C")
    report = library.run()
    assert [Path(failure.path).name for failure in report.failures] == ["a.png", "b.png"]


def test_a_file_that_cannot_be_indexed_does_not_affect_the_others(library: Library) -> None:
    library.write(a="A", b="broken", c="")
    report = library.run()
    assert counts(report) == (1, 0, 0, 0)
    assert [(Path(f.path).name, f.code, f.why) for f in report.failures] == [
        ("c.png", "empty_file", "the file is empty"),
        ("b.png", "not_an_image", "these bytes are not a picture"),
    ]


def test_only_the_bad_pictures_of_a_batch_fail(
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
    assert [(Path(f.path).name, f.code) for f in report.failures] == [
        ("b.png", "not_an_image"),
        ("e.png", "invalid_request"),
        ("g.png", "not_an_image"),
    ]
    assert library.held().keys() == set("acdfh")
    assert sorted(library.encoder.embedded) == [b"A", b"C", b"D", b"F", b"H"]


def test_the_index_keeps_a_picture_whose_file_breaks(library: Library) -> None:
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


def test_a_read_error_of_the_disk_fails_one_picture(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write(a="A", b="B")
    file_digest = hashlib.file_digest

    def failing(file: Any, name: str) -> Any:
        if file.name.endswith("b.png"):
            raise OSError(5, "Input/output error")
        return file_digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", failing)
    report = library.run()
    assert counts(report) == (1, 0, 0, 0)
    assert [failure.why for failure in report.failures] == [
        "cannot read the file: Input/output error"
    ]


def test_a_named_pipe_does_not_block_the_run(library: Library) -> None:
    os.mkfifo(library.top / "pipe.png")
    library.write(a="A")
    assert counts(library.run()) == (1, 0, 0, 0)
    (failure,) = library.run(library.top / "pipe.png").failures
    assert (failure.code, failure.why) == ("not_a_file", "the path is not a regular file")


def test_a_file_above_the_size_limit_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    file.write_bytes(b"large")
    with pytest.raises(IndexingError, match=r"^the file has 5 bytes; at most 3 are") as caught:
        content_hash(str(file), largest=3)
    assert caught.value.code == "too_large"
    assert content_hash(str(file), largest=5) == hashlib.sha256(b"large").hexdigest()


def test_a_failure_of_the_store_stops_the_run_and_the_next_run_continues(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write(**{f"p{n}": f"{n}" for n in range(20)})
    index = library.backend.index
    left = threading.Semaphore(5)  # calls of two pictures each

    def failing(*args: Any, **kwargs: Any) -> Any:
        if not left.acquire(blocking=False):
            raise StoreFull("the disk has 3 MB free")
        return index(*args, **kwargs)

    monkeypatch.setattr(library.backend, "index", failing)
    with pytest.raises(StoreFull):
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
            VisionEncoderConnectionError("unreachable", code="unreachable"),
            [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0],
        ),
        (StoreUnavailable("down"), [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]),
        (StoreFull("3 MB free"), []),
        (ValueError("a bug"), []),
    ],
)
def test_retries_back_off_and_end_after_a_minute(error: Exception, waits: list[float]) -> None:
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


def test_stopping_ends_the_wait_for_a_busy_service() -> None:
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
    running.close()  # as on a failure of the run, or Ctrl-C
    assert stop.is_set()
    stop.clear()
    assert len(list(each(str, range(9), 2, stop))) == 9
    assert not stop.is_set()
