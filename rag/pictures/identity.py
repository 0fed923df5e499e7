"""What a collection remembers of the encoder that filled it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rag.store.interface import ModelIdentity


class Described(Protocol):
    """What identifies an encoder; `bento.Encoder` has it."""

    model_name: str
    pretrained: str
    weights_digest: str
    preprocess_description: str
    embedding_dim: int


def identity_of(encoder: Described) -> ModelIdentity:
    """Return what a collection remembers of the encoder that filled it.

    A local folder counts by its name, not by its path: the digest identifies its weights.
    """
    schema, _, rest = encoder.model_name.partition(":")
    local = schema == "local-dir"
    return ModelIdentity(
        model_name=f"local-dir:{Path(rest).resolve().name}" if local else encoder.model_name,
        pretrained=encoder.pretrained,
        weights_digest=encoder.weights_digest,
        preprocess=encoder.preprocess_description,
        dimension=encoder.embedding_dim,
    )
