"""Search: combine the examples into one query vector, and find the pictures closest to it.

`rag.search` is also a public function. Importing this package binds that name to the package, so
the package itself can be called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bento.contract.search import SearchRequest, SearchResponse
    from rag.indexing.backends import Backend


class _CallableModule(ModuleType):
    def __call__(self, request: SearchRequest, *, backend: Backend | None = None) -> SearchResponse:
        """Call `rag.api.search`."""
        answer: SearchResponse = import_module("rag.api").search(request, backend=backend)
        return answer

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, (__name__,)  # a function can be pickled, so this must be, too


sys.modules[__name__].__class__ = _CallableModule
