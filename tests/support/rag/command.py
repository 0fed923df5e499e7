"""The type of the fixtures that run `vision-rag`."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]  # arguments; exit status, output, errors
