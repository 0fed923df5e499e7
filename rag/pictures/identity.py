"""The identity of the encoder that filled a collection."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rag.store.interface import ModelIdentity


class Described(Protocol):
    """The attributes that identify an encoder; `bento.Encoder` has them."""

    model_name: str
    pretrained: str
    weights_digest: str
    preprocess_description: str
    embedding_dim: int


def identity_of(encoder: Described) -> ModelIdentity:
    """Return the identity to store with a collection that this encoder fills.

    A model in a local folder is named by the folder's name, not by its path, so the folder may
    move. The digest identifies its weights.
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
