"""What the runners report, for metrics."""

from __future__ import annotations

from typing import Protocol


class QueueObserver(Protocol):
    """Receives the reports of one queue."""

    def waited(self, seconds: float) -> None:
        """An item left the queue for the tower after these seconds."""

    def ran(self, count: int, seconds: float) -> None:
        """The tower computed a batch of `count` items in these seconds."""

    def dropped(self) -> None:
        """The client cancelled an item before it ran."""

    def late(self) -> None:
        """The queue shed an item that would have missed its deadline."""

    def failed(self) -> None:
        """An item failed in a batch of its own."""


class TowerObserver(QueueObserver, Protocol):
    """Receives the reports of one runner: of its queue, and of the work around it."""

    def accepted(self, count: int) -> None:
        """So many items are now accepted and not yet answered."""

    def rejected(self) -> None:
        """Admission control rejected a request."""

    def decoded(self, seconds: float) -> None:
        """The preparation of an item took these seconds."""


class Observer(Protocol):
    """Gives each runner its observer."""

    def tower(self, name: str, /) -> TowerObserver:
        """Return the observer of the tower `text` or `image`."""
