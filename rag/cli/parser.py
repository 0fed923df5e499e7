"""The `vision-rag` command: index folders of pictures, and search and maintain the index."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from pydantic import TypeAdapter, ValidationError

from bento.contract.base import printable
from bento.contract.errors import VisionError, describe
from bento.contract.images import DEFAULT_DAO_ID, DaoId
from rag.cli import commands
from rag.cli.errors import word
from rag.cli.output import fail, warn
from rag.indexing.backends import Backend, RemoteBackend
from rag.settings import RagSettings
from router_client import ClientSettings, VisionEncoderClient

_EPILOG: Final = (
    "Exit status: 0 success; 1 failure; 2 wrong usage; 3 success, except for files that could not "
    "be indexed; 130 stopped by Ctrl-C."
)


def open_backend(local: bool) -> Backend:
    """Return the backend: a service, or with `local` a model and a store in this process."""
    if local:
        from rag.indexing.local import open_local

        return open_local()
    # The client does not retry: commands retry themselves, so that Ctrl-C stops them at once.
    client = VisionEncoderClient(max_retries=0)
    settings = ClientSettings()
    if "vision_encoder_url" in settings.from_env_file and not settings.is_default:
        # The folder may come from a stranger, whose server would receive the pictures.
        warn(word("address").format(client.base_url, os.path.abspath(".env")))
    return RemoteBackend(client)


def main(
    arguments: Sequence[str] | None = None, *, opened: Callable[[bool], Backend] = open_backend
) -> int:
    """Run the command with the backend that `opened` returns, and return its exit status."""
    try:
        options = parse(arguments)
        backend = opened(options.local)
        try:
            status: int = options.run(backend, options)
            sys.stdout.flush()
        finally:
            backend.close()
        return status
    except KeyboardInterrupt:
        warn(word("interrupted"))
        return 130
    except ValidationError as error:  # of an environment variable, or of an argument in a request
        variable = error.title.endswith("Settings")
        fail("invalid_variable" if variable else "invalid_request", describe(error))
    except VisionError as error:
        fail(error.code, str(error))
    except OSError as error:  # of standard output: the errors of other files are VisionErrors
        if sys.stdout is sys.__stdout__:  # otherwise Python's flush at exit fails again
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):  # which `| head` causes
            fail("output_unwritable", f"cannot write the output: {error.strerror}")
    return 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line. Their `run` is the function of the command."""
    return _parser().parse_args(arguments)


class _Parser(argparse.ArgumentParser):
    """Escapes wrong arguments in its message: the shell may have made them from file names."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    settings = RagSettings()
    shared = _Parser(add_help=False)
    shared.add_argument(
        "--local",
        action="store_true",
        help="use no service: load the model (MODEL_NAME, MODEL_PRETRAINED) and open the store in "
        "this process",
    )
    shared.add_argument(
        "--collection",
        default=settings.image_search_collection,
        help="the collection (IMAGE_SEARCH_COLLECTION; default: %(default)s)",
    )
    parser = _Parser(
        prog="vision-rag",
        description="Index pictures, and find them by text or by image. The command uses the "
        "service at VISION_ENCODER_URL or, with --local, runs the model in this process.",
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
        "Files are identified by their content. A run skips pictures that are already indexed, and "
        "continues an interrupted run. A picture with several copies is indexed once.",
    )
    index.add_argument(
        "source",
        nargs="+",
        help="a folder; a picture file; a manifest (.jsonl: one JSON object per line, with path "
        "and optional id, title, caption, category, tags, metadata); or - to read file names from "
        "standard input, one per line",
    )
    _add_tenant(index)
    index.add_argument(
        "--tag", type=_text, action="append", default=[], help="add this tag to all pictures"
    )
    index.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATTERN",
        help="index only files whose path relative to the given folder matches, for example "
        "'*/cats/*' (* also matches /)",
    )
    index.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="skip files that match"
    )
    index.add_argument(
        "--prune",
        action="store_true",
        help="delete the pictures of missing files in these folders from the index",
    )
    index.add_argument(
        "--dry-run", action="store_true", help="print what the command would do, and change nothing"
    )
    _add_failures(index)
    _add_workers(index)
    index.set_defaults(run=commands.index)

    search = command(
        "search",
        "find pictures, best first",
        "One query combines all texts and images, and subtracts the negative ones.",
    )
    search.add_argument(
        "text",
        nargs="*",
        type=_text,
        help="what the picture shows; the query combines several texts",
    )
    search.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE|URL",
        help="find pictures similar to this one; the service fetches a URL (ALLOW_IMAGE_URLS)",
    )
    search.add_argument(
        "--like",
        type=_text,
        action="append",
        default=[],
        metavar="ID",
        help="find pictures similar to this indexed one",
    )
    search.add_argument(
        "--weight",
        action="append",
        type=float,
        metavar="NUMBER",
        help="the weight of an example (default: 1): give one for each text, then for each "
        "--image, then for each --like",
    )
    search.add_argument(
        "--not",
        dest="unlike",
        type=_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="find pictures unlike this text",
    )
    search.add_argument(
        "--not-image",
        action="append",
        default=[],
        metavar="FILE",
        help="find pictures unlike this one",
    )
    search.add_argument("--dao-id", type=_tenant, help="find only pictures of this tenant")
    search.add_argument(
        "--tag",
        type=_text,
        action="append",
        default=[],
        help="find only pictures with all of these tags",
    )
    search.add_argument("--category", type=_text, help="find only pictures of this category")
    search.add_argument("--filter", type=_text, metavar="JSON", help="a Qdrant filter")
    search.add_argument(
        "--top-k",
        type=int,
        default=settings.image_search_default_top_k,
        help="the number of hits (default: %(default)s)",
    )
    search.add_argument("--offset", type=int, default=0, help="skip this number of hits")
    search.add_argument("--threshold", type=float, help="the lowest score to include, -1 to 1")
    search.add_argument(
        "--group-by",
        type=_text,
        metavar="FIELD",
        help="find the best pictures for each value of this field",
    )
    search.add_argument(
        "--diversity", type=float, help="0 to 1: prefer pictures that differ from each other"
    )
    search.add_argument(
        "--json", action="store_true", help="print a JSON list of {id, score, path, payload, group}"
    )
    search.set_defaults(run=commands.search)

    duplicates = command("duplicates", "list identical and similar pictures")
    duplicates.add_argument(
        "--threshold", type=float, default=0.95, help="the lowest similarity (default: %(default)s)"
    )
    _add_tenant(duplicates)
    duplicates.add_argument(
        "--json", action="store_true", help="print a JSON list of {score, pictures: [{id, paths}]}"
    )
    duplicates.set_defaults(run=commands.duplicates)

    delete = command("delete", "delete pictures from the index; their files stay")
    delete.add_argument("id", nargs="+", help="the id of a picture, or the path of its file")
    _add_tenant(delete)
    delete.set_defaults(run=commands.delete)

    stats = command(
        "stats", "show the number of pictures, the model and the versions of a collection"
    )
    stats.add_argument(
        "--json", action="store_true", help="print the JSON of GET /collections/NAME"
    )
    stats.set_defaults(run=commands.stats)

    reindex = command(
        "reindex",
        "re-embed a collection after a change of the model",
        "The command reads the pictures' files. The old vectors stay until the new ones are "
        "complete, and are then replaced in one step.",
    )
    reindex.add_argument(
        "--drop-missing",
        action="store_true",
        help="omit pictures whose file is missing or has changed",
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
        help="the tenant of the pictures (default: %(default)s)",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=_positive,
        help=f"pictures to process at a time (default: {RemoteBackend.workers}; with --local, "
        "three batches)",
    )


def _add_failures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--failures",
        metavar="FILE",
        help="also write the failures to this file, one JSON object per line",
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
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
