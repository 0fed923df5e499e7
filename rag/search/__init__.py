"""Search: from examples to one query vector, from that to hits.

`rag.search` is also a public function, and an imported subpackage takes that name: so the
subpackage can be called.
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
        """Do what `rag.api.search` does."""
        answer: SearchResponse = import_module("rag.api").search(request, backend=backend)
        return answer

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, (__name__,)  # functions can be pickled


sys.modules[__name__].__class__ = _CallableModule
