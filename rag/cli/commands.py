"""The commands of `vision-rag`. Each returns its exit status."""

from __future__ import annotations

import argparse
import json
import os
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic import ValidationError

from bento.contract.errors import describe
from bento.contract.filters import Filter, parse_filter
from bento.contract.search import Examples, ImageExample, SearchRequest, image_example
from rag.cli.errors import explain, word
from rag.cli.output import progress, say, say_json, say_table, warn
from rag.indexing.backends import Backend, hold
from rag.indexing.duplicates import near_duplicates
from rag.indexing.failures import Failure, IndexingError, write_failures
from rag.indexing.files import read
from rag.indexing.plan import Loss, Plan, make_plan, never, paths_of
from rag.indexing.reindex import reindex
from rag.indexing.run import carry_out, hash_sources, lose
from rag.indexing.sources import absolute, find_sources, shown

FINISHED_WITH_FAILURES: Final = 3
_SHOWN: Final = 20  # failures to print if a file lists all of them


def index(backend: Backend, options: argparse.Namespace) -> int:
    """Index the given files and folders; see `rag.indexing.run`."""
    sources = find_sources(
        options.source,
        _lines(),
        tags=options.tag,
        include=options.include,
        exclude=options.exclude,
    )
    if options.prune and not (sources.folders or sources.failures):
        raise IndexingError(
            "--prune deletes the pictures of missing files, so it needs a readable folder with "
            "pictures that pass --include and --exclude: an empty folder may be an unmounted disk",
            "prune_needs_folder",
        )
    if not (sources.pictures or sources.failures or options.prune):
        where = ", ".join(map(shown, options.source))
        raise IndexingError(f"no pictures in {where}", "no_pictures")
    workers = options.workers or backend.workers
    # Before hashing: without a service, this fails at once.
    held = hold(backend, options.collection, options.dao_id)
    with progress() as report_progress:
        hashed, failures = hash_sources(sources, workers, report_progress)
        failures = sources.failures + failures
        plan = make_plan(hashed, held, sources.is_gone if options.prune else never)
        if options.dry_run:
            _print_plan(plan, failures)
            return 0
        report = carry_out(
            plan, backend, options.collection, options.dao_id, workers, report_progress
        )
    failures += report.failures
    if options.prune and (
        kept := sum(any(map(sources.may_be_unmounted, paths_of(image))) for image in held)
    ):
        warn(
            f"pictures kept in the index because their folder is empty: {kept}. An empty folder "
            "may be an unmounted disk. If it is not, remove the folder and run --prune again"
        )
    say(
        f"indexed {report.indexed}, updated {report.updated}, unchanged {report.unchanged}, "
        f"duplicates {report.duplicates}, forgotten {report.forgotten}, failed {len(failures)}, "
        f"other files {sources.others} "
        f"(collection {options.collection}, dao_id {options.dao_id})"
    )
    return _report(failures, options.failures)


def search(backend: Backend, options: argparse.Namespace) -> int:
    """Search, and print the hits, best first."""
    images = [_example(path) for path in options.image]
    images += [ImageExample(id=image_id) for image_id in options.like]
    unlike = [_example(path) for path in options.not_image]
    if not (options.text or images):
        raise IndexingError("give a text, --image FILE or --like ID", "no_query")
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
        say_json([hit.model_dump() for hit in hits])
        return 0
    if not hits:
        say("nothing found")
        return 0
    grouped = bool(options.group_by)
    say_table(
        [
            (place, f"{hit.score:.3f}", *([hit.group] * grouped), hit.path or hit.id)
            for place, hit in enumerate(hits, options.offset + 1)
        ],
        ("", "score", *([options.group_by] * grouped), "picture"),
        numbers=2,
    )
    return 0


def duplicates(backend: Backend, options: argparse.Namespace) -> int:
    """Print groups of identical or similar pictures."""
    with progress() as report_progress:
        groups = near_duplicates(
            backend, options.collection, options.dao_id, options.threshold, report_progress
        )
    if options.json:
        say_json([group.as_json() for group in groups])
        return 0
    for group in groups:
        say(f"{group.score:.3f}")
        for image in group.images:
            for path in paths_of(image) or (image.id,):
                say(f"  {path}")
    say(f"{len(groups)} groups with a similarity of at least {options.threshold}")
    return 0


def delete(backend: Backend, options: argparse.Namespace) -> int:
    """Delete pictures from the index by id or by path."""
    deleted, missing = 0, []
    for given in options.id:
        # A name that is not UTF-8 is neither an id nor an indexed path.
        there = given == shown(given) and (
            backend.delete(given, options.dao_id, options.collection)
            or _delete_path(backend, absolute(given), options)
            or _delete_path(backend, os.path.abspath(given), options)  # below a linked folder
        )
        deleted += there
        missing += [] if there else [shown(given)]
    say(f"deleted {deleted}")
    if missing:
        raise IndexingError(
            f"not indexed for dao_id {options.dao_id}: {', '.join(missing)}", "not_indexed"
        )
    return 0


def stats(backend: Backend, options: argparse.Namespace) -> int:
    """Print the statistics of a collection."""
    held = backend.stats(options.collection).model_dump()
    if options.json:
        say_json(held)
    else:
        say_table(held.items())
    return 0


def reindex_collection(backend: Backend, options: argparse.Namespace) -> int:
    """Re-embed a collection with the backend's model; see `rag.indexing.reindex`."""
    with progress() as report_progress:
        done = reindex(
            backend,
            options.collection,
            workers=options.workers or backend.workers,
            drop_missing=options.drop_missing,
            progress=report_progress,
        )
    status = _report(done.failures, options.failures)
    if not done.published:
        raise IndexingError(
            f"{len(done.failures)} pictures cannot be re-embedded, so the collection is unchanged: "
            "index them again, or omit them with --drop-missing",
            "incomplete_reindex",
        )
    held = backend.stats(options.collection)
    say(
        f"embedded {done.embedded}, failed {len(done.failures)}; {options.collection} holds "
        f"{held.points} pictures of {held.model}"
    )
    return status


def _delete_path(backend: Backend, path: str, options: argparse.Namespace) -> bool:
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
    """Yield the lines of standard input, which may not be UTF-8."""
    if sys.stdin is None:
        raise IndexingError("- is standard input, which is closed", "no_standard_input")
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
            what = describe(error).removeprefix("must.0").lstrip(".: ")
            raise IndexingError(f"--filter: {what}", "bad_filter") from None
        except ValueError as error:
            raise IndexingError(f"--filter is not JSON: {error}", "bad_filter") from None
        conditions.append(given)
    return parse_filter({"must": conditions}) if conditions else None


def _example(path: str) -> ImageExample:
    """Return an example from a file, or from a URL that the service fetches."""
    if path.startswith(("http://", "https://")):
        return ImageExample(image_url=path)
    try:
        return image_example(read(path))
    except IndexingError as error:
        raise IndexingError(f"{shown(path)}: {error}", error.code) from None


def _print_plan(plan: Plan, failures: Sequence[Failure]) -> None:
    for one in plan.add:
        what = "update" if one.held else "index "
        say(f"{what}  {one.paths[0]}" + "".join(f" = {path}" for path in one.paths[1:]))
    for loss in plan.lose:
        for path in paths_of(loss.image):
            if path not in loss.left:
                say(f"forget  {path}")
    for failure in failures:
        for line in _explained(f"fail    {shown(failure.path)}", failure):
            say(line)
    say(
        f"would index or update {len(plan.add)}, leave {plan.unchanged} unchanged, remove paths "
        f"from {len(plan.lose)}; {len(failures)} would fail"
    )


def _explained(what: str, failure: Failure) -> list[str]:
    line, details = explain(failure.code, failure.why)
    return [f"{what}: {line}", *([f"  {details}"] if details else [])]


def _report(failures: Sequence[Failure], file: str | None) -> int:
    """Print the failures, list them in `file` if it is given, and return the exit status."""
    shown_failures = failures if file is None else failures[:_SHOWN]
    for failure in shown_failures:
        for line in _explained(f"{word('failed')} {shown(failure.path)}", failure):
            warn(line)
    if more := len(failures) - len(shown_failures):
        warn(word("more").format(more))
    if file is not None:
        write_failures(failures, file)
        if failures:
            warn(word("list").format(file))
    return FINISHED_WITH_FAILURES if failures else 0
