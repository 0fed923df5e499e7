"""The events that the runners report to the metrics."""

from __future__ import annotations

from typing import Protocol


class QueueObserver(Protocol):
    """Receives the events of one queue."""

    def waited(self, seconds: float) -> None:
        """Record that an item started to run after it waited this long."""

    def ran(self, count: int, seconds: float) -> None:
        """Record a batch of `count` items, which the tower computed in this time."""

    def dropped(self) -> None:
        """Record that the client cancelled an item before it ran."""

    def late(self) -> None:
        """Record that an item was shed because it would have missed its deadline."""

    def failed(self) -> None:
        """Record that an item failed in a batch of its own."""


class TowerObserver(QueueObserver, Protocol):
    """Receives the events of one runner: those of its queue, and those around it."""

    def accepted(self, count: int) -> None:
        """Record how many items are accepted and not yet answered."""

    def rejected(self) -> None:
        """Record that admission control rejected a request."""

    def decoded(self, seconds: float) -> None:
        """Record how long the preparation of an item took."""


class Observer(Protocol):
    """Gives each runner its observer."""

    def tower(self, name: str, /) -> TowerObserver:
        """Return the observer of the tower `text` or `image`."""
