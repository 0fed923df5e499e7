"""The `vision-rag` command: index folders of pictures, search and maintain the index."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape

from bento.contract.errors import VisionError, describe
from bento.contract.images import DEFAULT_DAO_ID, DaoId
from rag.cli import commands
from rag.indexing.backends import Backend, RemoteBackend
from rag.settings import RagSettings
from router_client import VisionEncoderClient

_EPILOG: Final = (
    "Exit status: 0 done; 1 it could not be done; 2 wrong usage; 3 done, but some files could not "
    "be indexed; 130 stopped by Ctrl-C."
)

_err = Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    try:
        options = parse(arguments)
        backend = open_backend(options.local)
        try:
            status: int = options.run(backend, options)
            sys.stdout.flush()
        finally:
            backend.close()
        return status
    except KeyboardInterrupt:
        _err.print("stopped; what is done stays done, and running it again goes on")
        return 130
    except ValidationError as error:  # of a variable, or of an argument in a request
        about = "a variable is not valid: " if error.title.endswith("Settings") else ""
        return _failed(about + describe(error))
    except VisionError as error:
        return _failed(str(error))
    except OSError as error:  # of standard output: errors of other files are a VisionError
        if sys.stdout is sys.__stdout__:  # flushing it at exit would fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):  # as with `| head`
            return 1
        return _failed(f"the output cannot be written: {error.strerror}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line; calling `run` carries out the command."""
    return _parser().parse_args(arguments)


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
        epilog=_EPILOG,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, more: str = "") -> argparse.ArgumentParser:
        description = f"{help[0].upper()}{help[1:]}. {more}".strip()
        return subparsers.add_parser(
            name, parents=[shared], help=help, description=description, epilog=_EPILOG
        )

    index = command(
        "index",
        "index pictures",
        "Files are identified by their content. A run skips pictures that are indexed already and "
        "continues a run that was stopped. A picture with several copies is indexed once.",
    )
    index.add_argument(
        "source",
        nargs="+",
        help="a folder, a picture file, a manifest (.jsonl: an object a line with path, and id, "
        "title, caption, category, tags, metadata as you like), or - for a list of files from "
        "standard input, one a line",
    )
    _add_tenant(index)
    index.add_argument(
        "--tag", type=_text, action="append", default=[], help="a tag for all of them"
    )
    index.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only files whose path below the folder matches, as in '*/cats/*' (* matches / too)",
    )
    index.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="not files that match"
    )
    index.add_argument(
        "--prune",
        action="store_true",
        help="forget pictures of these folders whose files are gone",
    )
    index.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    _add_failures(index)
    _add_workers(index)
    index.set_defaults(run=commands.index)

    search = command(
        "search",
        "find pictures, best first",
        "Texts and images add up to one query; negative ones are subtracted from it.",
    )
    search.add_argument(
        "text", nargs="*", type=_text, help="what the picture shows; several texts add up"
    )
    search.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE|URL",
        help="similar to this picture; a URL is fetched by the service (ALLOW_IMAGE_URLS)",
    )
    search.add_argument(
        "--like",
        type=_text,
        action="append",
        default=[],
        metavar="ID",
        help="similar to this indexed picture",
    )
    search.add_argument(
        "--weight",
        action="append",
        type=float,
        metavar="NUMBER",
        help="one for each text, then for each --image, then for each --like (1)",
    )
    search.add_argument(
        "--not",
        dest="unlike",
        type=_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="unlike this",
    )
    search.add_argument(
        "--not-image", action="append", default=[], metavar="FILE", help="unlike this picture"
    )
    search.add_argument("--dao-id", type=_tenant, help="this tenant's pictures only")
    search.add_argument(
        "--tag", type=_text, action="append", default=[], help="with all of these tags"
    )
    search.add_argument("--category", type=_text, help="of this category")
    search.add_argument("--filter", type=_text, metavar="JSON", help="a filter in Qdrant's form")
    search.add_argument(
        "--top-k",
        type=int,
        default=settings.image_search_default_top_k,
        help="how many (%(default)s)",
    )
    search.add_argument("--offset", type=int, default=0, help="leave out so many of the best")
    search.add_argument("--threshold", type=float, help="the lowest score, -1 to 1")
    search.add_argument(
        "--group-by", type=_text, metavar="FIELD", help="the best of each value of a field"
    )
    search.add_argument("--diversity", type=float, help="0 to 1: pictures unlike each other")
    search.add_argument("--json", action="store_true", help="a list of {id, score, path, payload}")
    search.set_defaults(run=commands.search)

    duplicates = command("duplicates", "list pictures that are the same or nearly so")
    duplicates.add_argument(
        "--threshold", type=float, default=0.95, help="the lowest similarity (%(default)s)"
    )
    _add_tenant(duplicates)
    duplicates.add_argument(
        "--json", action="store_true", help="a list of {score, pictures: [{id, paths}]}"
    )
    duplicates.set_defaults(run=commands.duplicates)

    delete = command("delete", "forget pictures")
    delete.add_argument("id", nargs="+", help="their ids, or the paths of their files")
    _add_tenant(delete)
    delete.set_defaults(run=commands.delete)

    stats = command("stats", "say what a collection holds")
    stats.add_argument("--json", action="store_true", help="as GET /collections/NAME answers")
    stats.set_defaults(run=commands.stats)

    reindex = command(
        "reindex",
        "fill a collection anew after a change of the model",
        "From the pictures' files; the old vectors stay until the new ones are complete, and are "
        "then replaced at once.",
    )
    reindex.add_argument(
        "--drop-missing", action="store_true", help="go on without pictures whose file is gone"
    )
    _add_failures(reindex)
    _add_workers(reindex)
    reindex.set_defaults(run=commands.reindex_collection)
    return parser


def _add_tenant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dao-id",
        type=_tenant,
        default=DEFAULT_DAO_ID,
        help="the tenant of the pictures (%(default)s)",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=_positive,
        help=f"pictures at a time ({RemoteBackend.workers}; with --local three batches)",
    )


def _add_failures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--failures",
        metavar="FILE",
        help=f"where to list the failures and their reasons ({commands.FAILURES})",
    )


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8") from None
    return text


def _tenant(text: str) -> str:
    try:
        return TypeAdapter(DaoId).validate_python(_text(text))
    except ValidationError as error:
        raise argparse.ArgumentTypeError(describe(error)) from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def open_backend(local: bool) -> Backend:
    """Return the backend: the service, or with `local` a model and a store in this process."""
    if local:
        from rag.indexing.local import open_local

        return open_local()
    # No retries of the client: long commands retry themselves, so that they can be stopped.
    return RemoteBackend(VisionEncoderClient(max_retries=0))


def _failed(why: str) -> int:
    _err.print(f"[red]error:[/] {escape(why)}", soft_wrap=True)
    return 1
