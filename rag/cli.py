"""The `vision-rag` command: index folders of pictures, search them, look after them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rag.backends import Backend, LocalBackend, RemoteBackend
from rag.errors import InvalidSearch
from rag.pictures import DEFAULT_DAO_ID, Hit, Picture
from rag.settings import RagSettings
from rag.store import open_store
from router_client import VisionEncoderClient

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_PICTURES_FAULT: Final = frozenset({400, 413, 415, 422})  # an error's status, local or remote
_AT_ONCE: Final = 8  # pictures under way: enough to keep a batching service busy

_out = Console()
_err = Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 1 for what a user can mend."""
    try:
        options = _parser().parse_args(arguments)
        backend = _backend(options.local)
        try:
            status: int = options.run(backend, options)
        finally:
            backend.close()
        return status
    except KeyboardInterrupt:
        _err.print("stopped; what was indexed stays indexed")
        return 130
    except ValidationError as error:
        wrong = "; ".join(f"{d['loc'][0]}: {d['msg']}".upper()[:200] for d in error.errors())
        _err.print(f"[red]error:[/] a variable is not valid: {escape(wrong)}")
        return 1
    except Exception as error:
        # errors of rag, the client and the encoder have a code and are sentences;
        # anything else is a bug
        if not hasattr(error, "code"):
            raise
        _err.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1


def _parser() -> argparse.ArgumentParser:
    settings = RagSettings()
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--local",
        action="store_true",
        help="load the model (MODEL_NAME, MODEL_PRETRAINED) and open the store in this process",
    )
    shared.add_argument(
        "--collection",
        default=settings.image_search_collection,
        help="IMAGE_SEARCH_COLLECTION, now %(default)s",
    )
    parser = argparse.ArgumentParser(
        prog="vision-rag",
        description="Index pictures and find them by text or by image, through the running "
        "service at VISION_ENCODER_URL or, with --local, in this process.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    index = commands.add_parser("index", parents=[shared], help="index the pictures in folders")
    index.add_argument("folder", nargs="+", type=Path, help="folders or picture files")
    index.add_argument("--dao-id", default=DEFAULT_DAO_ID, help="whose they are (%(default)s)")
    index.set_defaults(run=_index)

    search = commands.add_parser("search", parents=[shared], help="find pictures, best first")
    search.add_argument("text", nargs="?", help="what the picture shows")
    search.add_argument("--image", type=Path, help="a picture file to find similar ones to")
    search.add_argument("--dao-id", help="search this tenant's pictures only")
    search.add_argument(
        "--top-k",
        type=int,
        default=settings.image_search_default_top_k,
        help="how many (%(default)s)",
    )
    search.add_argument("--json", action="store_true", help="a list of {id, score, path, payload}")
    search.set_defaults(run=_search)

    delete = commands.add_parser("delete", parents=[shared], help="forget pictures")
    delete.add_argument("id", nargs="+", help="the pictures' ids; indexed files have their path")
    delete.add_argument("--dao-id", default=DEFAULT_DAO_ID, help="whose they are (%(default)s)")
    delete.set_defaults(run=_delete)

    stats = commands.add_parser("stats", parents=[shared], help="say what a collection holds")
    stats.add_argument("--json", action="store_true", help="{collection, points, model, dimension}")
    stats.set_defaults(run=_stats)
    return parser


def _backend(local: bool) -> Backend:
    if not local:
        return RemoteBackend(VisionEncoderClient())
    # the one place where rag meets the encoder's package: it is handed in from here on
    if find_spec("torch") is None:
        raise InvalidSearch(
            "--local runs the model in this process, and torch is not installed: "
            "pip install 'vision-encoder[service]', or leave --local out and ask a service"
        )
    from bento import Encoder, Settings

    store = open_store(RagSettings())  # first: it refuses at once when another process owns it
    return LocalBackend(Encoder.load(Settings()), store)


def _index(backend: Backend, options: argparse.Namespace) -> int:
    files = _files(options.folder)
    if not files:
        raise InvalidSearch(f"no files in {', '.join(map(str, options.folder))}")
    indexed, unchanged = 0, 0
    skipped: list[tuple[Path, str]] = []
    progress = Progress(
        TextColumn("indexing"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=_err,
    )
    with progress, ThreadPoolExecutor(_AT_ONCE) as threads:
        task = progress.add_task("", total=len(files), rate="")
        for path, done in _concurrently(threads, backend, files, options):
            try:
                if done.result():
                    indexed += 1
                else:
                    unchanged += 1
            except Exception as error:
                if getattr(error, "status", None) not in _PICTURES_FAULT:
                    raise  # the next ones would fail alike
                skipped.append((path, str(error)))
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f"{speed:.0f} pictures/s" if speed else "")
    for path, why in skipped:
        _err.print(f"skipped {escape(str(path))}: {escape(why)}", soft_wrap=True)
    _out.print(
        f"indexed {indexed}, unchanged {unchanged}, skipped {len(skipped)} "
        f"(collection {options.collection}, dao_id {options.dao_id})",
        soft_wrap=True,
        highlight=False,
    )
    return 0 if indexed or unchanged else 1


def _concurrently(
    threads: ThreadPoolExecutor,
    backend: Backend,
    files: Sequence[Path],
    options: argparse.Namespace,
) -> Iterator[tuple[Path, Future[bool]]]:
    """Index files, a few at a time, and yield each when it is done."""
    under_way: dict[Future[bool], Path] = {}
    waiting = iter(files)
    try:
        while True:
            while len(under_way) < _AT_ONCE and (path := next(waiting, None)):
                under_way[threads.submit(_index_file, backend, path, options)] = path
            if not under_way:
                return
            for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                yield under_way.pop(done), done
    finally:
        for future in under_way:
            future.cancel()


def _index_file(backend: Backend, path: Path, options: argparse.Namespace) -> bool:
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidSearch(f"not a picture; indexed are {', '.join(sorted(SUFFIXES))}")
    name = str(path.resolve())
    metadata = {"title": path.stem.replace("_", " ")}
    picture = Picture(name, _read(path), name, options.dao_id, metadata)
    return backend.index(picture, options.collection)


def _search(backend: Backend, options: argparse.Namespace) -> int:
    if (options.text is None) == (options.image is None):
        raise InvalidSearch("give a text or --image FILE, one of them")
    query = options.text if options.image is None else _read(options.image)
    hits = backend.search(query, options.collection, top_k=options.top_k, dao_id=options.dao_id)
    if options.json:
        print(json.dumps([asdict(hit) for hit in hits], ensure_ascii=False))
    else:
        _print_hits(hits, title=options.text or str(options.image))
    return 0


def _print_hits(hits: Sequence[Hit], title: str) -> None:
    table = Table(title=escape(title), title_justify="left")
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    table.add_column("picture", overflow="fold")
    for place, hit in enumerate(hits, 1):
        table.add_row(str(place), f"{hit.score:.3f}", escape(hit.path or hit.id))
    _out.print(table if hits else "nothing found")


def _delete(backend: Backend, options: argparse.Namespace) -> int:
    missing = [
        image_id
        for image_id in options.id
        if not backend.delete(image_id, options.dao_id, options.collection)
    ]
    _out.print(f"deleted {len(options.id) - len(missing)}")
    if missing:
        raise InvalidSearch(f"not indexed for dao_id {options.dao_id}: {', '.join(missing)}")
    return 0


def _stats(backend: Backend, options: argparse.Namespace) -> int:
    stats = asdict(backend.stats(options.collection))
    if options.json:
        print(json.dumps(stats, ensure_ascii=False))
        return 0
    table = Table(show_header=False)
    for name, value in stats.items():
        table.add_row(name, escape(str(value)))
    _out.print(table)
    return 0


def _files(folders: Sequence[Path]) -> list[Path]:
    """Return the files below folders, sorted, without hidden ones; files as they are."""
    found: list[Path] = []
    for folder in folders:
        if folder.is_dir():
            below = (path for path in folder.rglob("*") if path.is_file())
            found += sorted(p for p in below if not _is_hidden(p.relative_to(folder)))
        elif folder.is_file():
            found.append(folder)
        else:
            raise InvalidSearch(f"there is no file or folder {folder}")
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidSearch(f"cannot read {path}: {error.strerror}") from None
