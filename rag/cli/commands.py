"""The commands of `vision-rag`, and their output."""

from __future__ import annotations

import argparse
import json
import os
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from bento.contract.errors import InvalidSearch, describe
from bento.contract.filters import Filter, parse_filter
from bento.contract.search import Examples, ImageExample, SearchRequest, image_example
from rag.indexing.backends import Backend, hold
from rag.indexing.bulk import Progress
from rag.indexing.duplicates import near_duplicates
from rag.indexing.files import read
from rag.indexing.plan import Loss, Plan, make_plan, never, paths_of
from rag.indexing.reindex import reindex
from rag.indexing.run import carry_out, hash_sources, lose
from rag.indexing.sources import Failure, absolute, find_sources, shown

FAILURES: Final = "vision-rag-failed.jsonl"
FINISHED_WITH_FAILURES: Final = 3
_SHOWN: Final = 20  # failures on the terminal; the file has all

_out = Console()
_err = Console(stderr=True)


def index(backend: Backend, options: argparse.Namespace) -> int:
    """Index the files that the arguments name; see `rag.indexing.run`."""
    sources = find_sources(
        options.source,
        _lines(),
        tags=options.tag,
        include=options.include,
        exclude=options.exclude,
    )
    if options.prune and not (sources.folders or sources.failures):
        raise InvalidSearch(
            "--prune needs a folder that can be read and has pictures (that --include and "
            "--exclude leave): it forgets what is gone there, and an empty one may be a disk that "
            "is away"
        )
    if not (sources.pictures or sources.failures or options.prune):
        raise InvalidSearch(f"no pictures in {', '.join(map(shown, options.source))}")
    workers = options.workers or backend.workers
    held = hold(backend, options.collection, options.dao_id)  # first: fails without a service
    with _progress() as progress:
        hashed, failures = hash_sources(sources, workers, progress)
        failures = sources.failures + failures
        plan = make_plan(hashed, held, sources.is_gone if options.prune else never)
        if options.dry_run:
            _print_plan(plan, failures)
            return 0
        report = carry_out(plan, backend, options.collection, options.dao_id, workers, progress)
    failures += report.failures
    if options.prune and (
        away := sum(any(map(sources.may_be_unmounted, paths_of(image))) for image in held)
    ):
        _err.print(
            f"left {away} pictures of folders that are empty, which may be disks that are away: "
            "to forget these, remove the folders"
        )
    _print(
        f"indexed {report.indexed}, updated {report.updated}, unchanged {report.unchanged}, "
        f"duplicates {report.duplicates}, forgotten {report.forgotten}, failed {len(failures)}, "
        f"other files {sources.others} "
        f"(collection {options.collection}, dao_id {options.dao_id})"
    )
    return _tell(failures, options.failures)


def search(backend: Backend, options: argparse.Namespace) -> int:
    """Search, and print the hits."""
    images = [_example(path) for path in options.image]
    images += [ImageExample(id=image_id) for image_id in options.like]
    unlike = [_example(path) for path in options.not_image]
    if not (options.text or images):
        raise InvalidSearch("give a text, --image FILE or --like ID")
    negative = None
    if options.unlike or unlike:
        negative = Examples(text=options.unlike or None, image=unlike or None)
    request = SearchRequest(
        text=options.text or None,
        image=images or None,
        weights=options.weight,
        negative=negative,
        top_k=options.top_k,
        offset=options.offset,
        dao_id=options.dao_id,
        filter=_filter(options),
        score_threshold=options.threshold,
        group_by=options.group_by,
        diversity=options.diversity,
        collection=options.collection,
    )
    hits = backend.search(request).hits
    if options.json:
        print(json.dumps([hit.model_dump() for hit in hits], ensure_ascii=False))
        return 0
    if not hits:
        _print("nothing found")
        return 0
    table = Table()
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    if options.group_by:
        table.add_column(escape(options.group_by))
    table.add_column("picture", overflow="fold")
    for place, hit in enumerate(hits, options.offset + 1):
        group = [escape(str(hit.group))] if options.group_by else []
        table.add_row(str(place), f"{hit.score:.3f}", *group, escape(hit.path or hit.id))
    _out.print(table)
    return 0


def duplicates(backend: Backend, options: argparse.Namespace) -> int:
    """List groups of pictures that are the same or nearly so."""
    with _progress() as progress:
        groups = near_duplicates(
            backend, options.collection, options.dao_id, options.threshold, progress
        )
    if options.json:
        print(json.dumps([group.as_json() for group in groups], ensure_ascii=False))
        return 0
    for group in groups:
        _print(f"{group.score:.3f}")
        for image in group.images:
            for path in paths_of(image) or (image.id,):
                _print(f"  {path}")
    _print(f"{len(groups)} groups of pictures at least {options.threshold} alike")
    return 0


def delete(backend: Backend, options: argparse.Namespace) -> int:
    """Forget pictures by id, or their paths."""
    deleted, missing = 0, []
    for given in options.id:
        there = given == shown(given) and (
            backend.delete(given, options.dao_id, options.collection)
            or _forget_path(backend, absolute(given), options)
            or _forget_path(backend, os.path.abspath(given), options)  # below a linked folder
        )
        deleted += there
        missing += [] if there else [shown(given)]
    _print(f"deleted {deleted}")
    if missing:
        raise InvalidSearch(f"not indexed for dao_id {options.dao_id}: {', '.join(missing)}")
    return 0


def stats(backend: Backend, options: argparse.Namespace) -> int:
    """Print the numbers of a collection."""
    held = backend.stats(options.collection).model_dump()
    if options.json:
        print(json.dumps(held, ensure_ascii=False))
        return 0
    table = Table(show_header=False)
    for name, value in held.items():
        table.add_row(name, escape(str(value)))
    _out.print(table)
    return 0


def reindex_collection(backend: Backend, options: argparse.Namespace) -> int:
    """Fill a collection anew with the backend's model; see `rag.indexing.reindex`."""
    with _progress() as progress:
        done = reindex(
            backend,
            options.collection,
            workers=options.workers or backend.workers,
            drop_missing=options.drop_missing,
            progress=progress,
        )
    status = _tell(done.failures, options.failures)
    if not done.published:
        raise InvalidSearch(
            f"{len(done.failures)} pictures cannot be embedded anew, so the collection stays as it "
            "was: index them again, or go on without them (--drop-missing); "
            f"{options.failures or FAILURES} lists them"
        )
    held = backend.stats(options.collection)
    _print(
        f"embedded {done.embedded}, failed {len(done.failures)}; {options.collection} holds "
        f"{held.points} pictures of {held.model}"
    )
    return status


def _forget_path(backend: Backend, path: str, options: argparse.Namespace) -> bool:
    there = [
        image
        for image in hold(backend, options.collection, options.dao_id)
        if path in paths_of(image)
    ]
    for image in there:
        left = tuple(other for other in paths_of(image) if other != path)
        lose(Loss(image, left), backend, options.collection)
    return bool(there)


def _lines() -> Iterator[str]:
    """Yield the lines of standard input, which need not be UTF-8."""
    if sys.stdin is None:
        raise InvalidSearch("- is standard input, which is closed")
    for number, line in enumerate(sys.stdin.buffer):
        yield os.fsdecode(line if number else line.removeprefix(BOM_UTF8))


def _filter(options: argparse.Namespace) -> Filter | None:
    conditions: list[dict[str, Any]] = [
        {"key": "tags", "match": {"value": tag}} for tag in options.tag
    ]
    if options.category is not None:
        conditions.append({"key": "category", "match": {"value": options.category}})
    if options.filter is not None:
        try:
            given = json.loads(options.filter)
            parse_filter({"must": [given]})
        except ValidationError as error:
            said = describe(error).removeprefix("must.0").lstrip(".: ")
            raise InvalidSearch(f"--filter: {said}") from None
        except ValueError as error:
            raise InvalidSearch(f"--filter is not JSON: {error}") from None
        conditions.append(given)
    return parse_filter({"must": conditions}) if conditions else None


def _example(path: str) -> ImageExample:
    """Return an image to search by: a file, or a URL that the service fetches."""
    if path.startswith(("http://", "https://")):
        return ImageExample(image_url=path)
    try:
        return image_example(read(path))
    except InvalidSearch as error:
        raise InvalidSearch(f"{shown(path)} {error}") from None


def _print_plan(plan: Plan, failures: Sequence[Failure]) -> None:
    for one in plan.add:
        what = "update" if one.held else "index "
        _print(f"{what}  {one.paths[0]}" + "".join(f" = {path}" for path in one.paths[1:]))
    for loss in plan.lose:
        for path in paths_of(loss.image):
            if path not in loss.left:
                _print(f"forget  {path}")
    for failure in failures:
        _print(f"fail    {shown(failure.path)}: {failure.why}")
    _print(
        f"would index or update {len(plan.add)}, leave {plan.unchanged} unchanged, take paths from "
        f"{len(plan.lose)}; {len(failures)} would fail"
    )


def _tell(failures: Sequence[Failure], file: str | None) -> int:
    """Print the failures, list them in a file, and return the exit status."""
    if not failures and file is None:
        with suppress(OSError):
            os.remove(FAILURES)  # of an earlier run
        return 0
    file = file or FAILURES
    for failure in failures[:_SHOWN]:
        _err.print(f"failed {escape(shown(failure.path))}: {escape(failure.why)}", soft_wrap=True)
    if len(failures) > _SHOWN:
        _err.print(f"and {len(failures) - _SHOWN} more")
    try:
        with open(file, "w", encoding="utf-8") as lines:
            for failure in failures:  # as ASCII, since a path need not be UTF-8
                lines.write(json.dumps({"path": failure.path, "why": failure.why}) + "\n")
    except OSError as error:
        raise InvalidSearch(f"{file} cannot be written: {error.strerror} (--failures)") from None
    if not failures:
        return 0
    _err.print(f"all of them: {escape(file)}", soft_wrap=True)
    return FINISHED_WITH_FAILURES


class _Rate(ProgressColumn):
    """Pictures a second, computed when drawn only: rich averages 1,000 samples each time."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} pictures/s" if task.speed else "")


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show the activity, its progress, its rate and the time left on the terminal."""
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=_err,
    )
    tasks: dict[str, Any] = {}

    def progress(what: str, done: int, total: int, note: str) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total, note="")
        bar.update(tasks[what], completed=done, total=total, note=note)

    with bar:
        yield progress


def _print(line: str) -> None:
    _out.print(line, soft_wrap=True, highlight=False, markup=False)
