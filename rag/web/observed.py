"""What the service reports about its store: every call, and a regular check."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any, Final, Protocol, cast

from bento.contract.errors import (
    CollectionMismatch,
    CollectionNotFound,
    RagError,
    StoreFull,
    StoreUnavailable,
)
from rag.pictures.index import PictureIndex
from rag.store.interface import Collection, Store

# Seconds between two checks. The embedded engine takes about 30 ms to count 100 000 points, and
# blocks Python for that time.
CHECK_SECONDS: Final = 60.0


class StoreObserver(Protocol):
    """Receives the state of the store."""

    def called(self, operation: str, seconds: float, *, answered: bool) -> None:
        """Record a call, the time it took, and whether the store answered."""

    def points(self, count: int) -> None:
        """Record the number of pictures in the published version of the default collection."""

    def mismatch(self, found: bool) -> None:
        """Record whether the default collection holds another model's vectors."""

    def free_bytes(self, count: int) -> None:
        """Record the free space on the disk of the embedded store."""


def observed(store: Store, observer: StoreObserver) -> Store:
    """Return a store that reports its calls, and those of its collections."""
    return cast(Store, _Observed(store, observer))


class _Observed:
    """Passes the calls of a store or a collection on, and reports them."""

    def __init__(self, target: Store | Collection, observer: StoreObserver) -> None:
        self._target = target
        self._observer = observer

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return partial(self._call, name, found) if callable(found) else found

    def _call(self, operation: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        started = perf_counter()
        answered = True
        try:
            result = call(*args, **options)
        except StoreUnavailable as error:
            answered = isinstance(error, StoreFull)  # a full disk still answers searches
            raise
        finally:
            self._observer.called(operation, perf_counter() - started, answered=answered)
        if operation == "generations":
            return [_Observed(each, self._observer) for each in result]
        opened = operation in ("open", "published") and result is not None
        return _Observed(result, self._observer) if opened else result


def watch(
    pictures: PictureIndex,
    collection: str,
    folder: Path | None,
    observer: StoreObserver,
    closed: Event,
    seconds: float = CHECK_SECONDS,
) -> None:
    """Check a collection at once, and then every `seconds`, until `closed` is set.

    `folder` is that of the embedded store. A scrape of the metrics thus never waits for the store.
    `pictures` reports its calls to the store to `observer`.
    """
    while True:
        try:
            if folder:
                observer.free_bytes(shutil.disk_usage(folder).free)
            observer.points(pictures.open(collection).count())
            observer.mismatch(False)
        except CollectionMismatch:
            observer.mismatch(True)
        except CollectionNotFound:  # dropped, or never created
            observer.points(0)
            observer.mismatch(False)
        except (RagError, OSError):
            pass  # the calls have been reported; what is unknown keeps its last value
        if closed.wait(seconds):
            return
