"""Run blocking calls outside of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Work(Protocol):
    """Runs a blocking call on a thread; the service passes `bento.runners.pool.Pool.run`."""

    async def __call__(
        self, call: Callable[..., T], /, *args: Any, cost: float = 1.0, **options: Any
    ) -> T:
        """Return the call's result. `cost` compares it with other calls. Raises `Busy`."""


async def on_a_thread(
    call: Callable[..., T],
    /,
    *args: Any,
    cost: float = 1.0,  # noqa: ARG001 (there is no other call to compare it with)
    **options: Any,
) -> T:
    """Run a call on one of asyncio's threads, without admission control."""
    return await asyncio.to_thread(call, *args, **options)
