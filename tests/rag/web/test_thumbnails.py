"""Previews: made from uploads, and from files only below the allowed folders."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image

from bento.contract.errors import ImageNotFound, TooLarge
from rag.pictures.index import Picture, point_id
from rag.settings import RagSettings
from rag.store.interface import Record
from rag.web.files import read_below, real_path
from rag.web.thumbnails import MAX_PATHS, Thumbnails

T = TypeVar("T")
LARGE = b"large"  # what a large picture begins with


class FakeDecoder:
    """Makes a preview of any bytes, except those that begin with `broken`, and counts."""

    def __init__(self) -> None:
        self.image_limits = {"max_bytes": 100, "max_pixels": 100}
        self.decoded: list[bytes] = []

    def is_large(self, data: bytes) -> bool:
        if data.startswith(b"broken"):
            raise TooLarge("more pixels than today's limit")
        return data.startswith(LARGE)

    def preview(self, data: bytes, side: int) -> Image.Image:
        self.decoded.append(data)
        return Image.new("RGB", (side, side // 2))


class FakeThreads:
    """Runs calls at once, and counts them."""

    def __init__(self) -> None:
        self.calls = 0

    async def run(
        self, call: Callable[..., T], /, *args: Any, cost: float = 1.0, **options: Any
    ) -> T:
        self.calls += 1
        return call(*args, **options)


def run(call: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread, because Playwright's loop may run in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, call).result()


class Previews:
    """Thumbnails with fakes, below a folder of files that may be read."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "files"
        self.files.mkdir()
        self.kept = folder / "kept"
        self.decoder = FakeDecoder()
        self.work, self.large = FakeThreads(), FakeThreads()
        self.thumbnails = Thumbnails(
            self.kept, [self.files], self.decoder, self.work.run, self.large.run
        )

    def keep(self, data: bytes, *paths: object) -> None:
        path, *others = map(str, paths or ("",))
        picture = Picture("a", data, path, "dao", {}, others)
        run(self.thumbnails.keep(picture, "c"))

    def of(self, data: bytes, *paths: object) -> bytes:
        payload = {
            "image_path": str(paths[0]) if paths else "",
            "duplicates": [str(path) for path in paths[1:]],
            "content_hash": sha256(data).hexdigest(),
        }
        return run(self.thumbnails.of("c", Record(point_id("dao", "a"), payload)))

    def has(self, data: bytes, *paths: object) -> bool:
        try:
            return bool(self.of(data, *paths))
        except ImageNotFound:
            return False

    def files_kept(self) -> list[Path]:
        return [path for path in self.kept.rglob("*") if path.is_file()]


@pytest.fixture
def previews(tmp_path: Path) -> Previews:
    return Previews(tmp_path)


def test_the_preview_of_an_upload_is_kept_whatever_lies_at_its_paths(previews: Previews) -> None:
    same_size = previews.files / "a.png"
    same_size.write_bytes(b"12345")
    previews.keep(b"abcde", same_size, "/etc/passwd")
    assert Image.open(io.BytesIO(previews.of(b"abcde"))).size == (384, 192)
    previews.keep(b"abcde", "moved.png")
    assert previews.decoder.decoded == [b"abcde"]  # made once
    previews.keep(b"other content")
    assert len(previews.files_kept()) == 1
    assert not previews.has(b"abcde")


def test_a_preview_is_made_from_the_file_only_below_the_allowed_folders(
    previews: Previews, tmp_path: Path
) -> None:
    inside, outside = previews.files / "in.png", tmp_path / "out.png"
    inside.write_bytes(b"picture")
    outside.write_bytes(b"picture")
    (tmp_path / "link.png").symlink_to(inside)
    assert not previews.has(b"picture", outside, tmp_path / "link.png")
    assert not previews.has(b"picture", "in.png", previews.files, "/nowhere", "\0", "\ud800")
    assert previews.has(b"picture", outside, inside)
    assert previews.has(b"picture")  # kept since then


@pytest.mark.parametrize(
    "path", ["../out.png", "link.png", "folder/out.png", "folder/../out.png", "../files-2/out.png"]
)
def test_neither_links_nor_dots_lead_out_of_the_allowed_folders(
    previews: Previews, tmp_path: Path, path: str
) -> None:
    (tmp_path / "files-2").mkdir()
    for name in ("out.png", "files-2/out.png"):
        (tmp_path / name).write_bytes(b"picture")
    (previews.files / "link.png").symlink_to(tmp_path / "out.png")
    (previews.files / "folder").symlink_to(tmp_path)
    assert not previews.has(b"picture", f"{previews.files}/{path}")


def test_links_inside_of_an_allowed_folder_are_followed(previews: Previews, tmp_path: Path) -> None:
    (previews.files / "deep").mkdir()
    (previews.files / "deep" / "a.png").write_bytes(b"picture")
    (previews.files / "link").symlink_to(previews.files / "deep")
    assert previews.has(b"picture", previews.files / "link" / "a.png")
    (tmp_path / "alias").symlink_to(previews.files)  # an allowed folder may itself be a link
    for named in (tmp_path / "alias", previews.files):
        path = str(named / "deep" / ".." / "deep" / "a.png")
        found = real_path(path, [tmp_path / "alias"])
        assert found == (previews.files, previews.files / "deep" / "a.png")


def test_without_allowed_folders_no_file_is_read(tmp_path: Path) -> None:
    previews = Previews(tmp_path)
    (previews.files / "a.png").write_bytes(b"picture")
    previews.thumbnails = Thumbnails(
        previews.kept, [], previews.decoder, previews.work.run, previews.large.run
    )
    assert not previews.has(b"picture", previews.files / "a.png")


def test_a_path_that_was_replaced_after_its_check_leads_nowhere(
    previews: Previews, tmp_path: Path
) -> None:
    deep = previews.files / "deep"
    deep.mkdir()
    (deep / "a.png").write_bytes(b"picture")
    (tmp_path / "a.png").write_bytes(b"secret")
    checked = real_path(str(deep / "a.png"), [previews.files])
    assert checked
    assert read_below(*checked, 100) == b"picture"
    (deep / "a.png").unlink()
    (deep / "a.png").symlink_to(tmp_path / "a.png")
    assert read_below(*checked, 100) is None
    (deep / "a.png").unlink()
    deep.rmdir()
    deep.symlink_to(tmp_path)
    assert read_below(*checked, 100) is None


@pytest.mark.parametrize("kind", ["link", "fifo", "large"])
def test_a_file_that_is_replaced_just_before_it_is_opened_is_not_read(
    previews: Previews, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = previews.files / "a.png"
    file.write_bytes(b"picture")
    (tmp_path / "a.png").write_bytes(b"secret")
    look = os.stat

    def look_then_replace(path: Any, **options: Any) -> os.stat_result:
        status = look(path, **options)
        file.unlink()
        if kind == "link":
            file.symlink_to(tmp_path / "a.png")
        elif kind == "fifo":
            os.mkfifo(file)
        else:
            file.write_bytes(b"x" * 101)
        return status

    with monkeypatch.context() as patch:
        patch.setattr("rag.web.files.os.stat", look_then_replace)
        assert read_below(previews.files, file, 100) is None


def test_only_regular_files_of_an_allowed_size_are_read(previews: Previews) -> None:
    os.mkfifo(previews.files / "fifo.png")
    (previews.files / "folder.png").mkdir()
    (previews.files / "large.png").write_bytes(b"x" * 101)
    (previews.files / "limit.png").write_bytes(b"x" * 100)
    for name, data in (("fifo", None), ("folder", None), ("large", None), ("limit", b"x" * 100)):
        checked = real_path(str(previews.files / f"{name}.png"), [previews.files])
        assert checked
        assert read_below(*checked, 100) == data
    open_files = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    read_below(previews.files, previews.files / "limit.png", 100)
    if open_files:
        assert len(os.listdir("/proc/self/fd")) == len(open_files)


def test_at_most_eight_paths_are_tried_and_each_file_once(
    previews: Previews, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []

    def counted(folder: Path, file: Path, max_bytes: int) -> bytes | None:
        reads.append(file)
        return read_below(folder, file, max_bytes)

    monkeypatch.setattr("rag.web.thumbnails.read_below", counted)
    wrong = previews.files / "wrong.png"
    wrong.write_bytes(b"other")
    assert not previews.has(b"picture", *[wrong] * 10_000)
    assert reads == [wrong]
    others = [previews.files / f"{number}.png" for number in range(MAX_PATHS + 1)]
    for file in others[:-1]:
        file.write_bytes(b"other")
    others[-1].write_bytes(b"picture")
    assert not previews.has(b"picture", *others)
    assert reads[1:] == others[:MAX_PATHS]


def test_every_reason_for_no_preview_has_the_same_message(
    previews: Previews, tmp_path: Path
) -> None:
    outside, other = tmp_path / "out.png", previews.files / "other.png"
    outside.write_bytes(b"picture")
    other.write_bytes(b"other")
    broken = previews.files / "broken.png"
    broken.write_bytes(b"broken picture")
    said = set()
    for data, path in (
        (b"picture", outside),
        (b"picture", other),
        (b"picture", previews.files / "missing.png"),
        (b"broken picture", broken),
    ):
        with pytest.raises(ImageNotFound) as error:
            previews.of(data, path)
        said.add(str(error.value))
    assert said == {"this picture has no preview: index it again to make one"}


def test_large_pictures_are_decoded_only_by_the_threads_for_them(previews: Previews) -> None:
    file = previews.files / "a.png"
    file.write_bytes(LARGE)
    assert previews.has(LARGE, file)
    assert (previews.large.calls, previews.decoder.decoded) == (1, [LARGE])
    previews.keep(LARGE + b"2")
    assert (previews.large.calls, previews.decoder.decoded) == (2, [LARGE, LARGE + b"2"])
    previews.keep(LARGE + b"2")
    previews.keep(b"small")
    assert previews.large.calls == 2


def test_a_preview_that_cannot_be_saved_is_served(previews: Previews) -> None:
    previews.kept.write_bytes(b"a file, not a folder")
    file = previews.files / "a.png"
    file.write_bytes(b"picture")
    assert previews.has(b"picture", file)
    previews.keep(b"picture")  # the picture is indexed nevertheless


@pytest.mark.parametrize(
    ("value", "folders"), [("", []), ("/a/,/b/../c", ["/a", "/c"]), ("/", ["/"])]
)
def test_folders_are_separated_by_commas(value: str, folders: list[str]) -> None:
    settings = RagSettings(_env_file=None, files_paths=value)
    assert settings.files_folders == [Path(folder) for folder in folders]


@pytest.mark.parametrize("value", ["pictures", "/a,b", "/a,", "/a, /b"])
def test_a_folder_that_is_not_absolute_is_rejected(value: str) -> None:
    with pytest.raises(ValueError, match="absolute"):
        RagSettings(_env_file=None, files_paths=value)
