"""Compute CLIP embeddings of texts and images.

    from bento import Encoder, Settings

    encoder = Encoder.load(Settings(model_name="local-dir:models/shapes"))
    encoder.encode_texts(["a red circle"])  # float32 (1, dim)

Public names are imported at their first use, so that `bento.contract` needs only pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bento.contract.errors import EncoderError
    from bento.encoder.model import Encoder
    from bento.settings import Settings

__all__ = ["Encoder", "EncoderError", "Settings"]

_MODULES: Final = {
    "Encoder": "bento.encoder.model",
    "EncoderError": "bento.contract.errors",
    "Settings": "bento.settings",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
