"""The two ways to an index: a running service over HTTP, or a model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rag.errors import InvalidSearch
from rag.pictures import Hit, Picture, PictureIndex, Stats
from rag.store import ModelIdentity, Store
from router_client import VisionEncoderClient

Query = str | bytes  # a text, or the bytes of a picture file


class Encoder(Protocol):
    """What an encoder must offer to be handed in; `bento.Encoder` does."""

    model_name: str
    pretrained: str
    weights_digest: str
    preprocess_description: str
    embedding_dim: int

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return normalised embeddings, float32 (n, dim)."""

    def encode_images(self, images: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return normalised embeddings of picture files' bytes, float32 (n, dim)."""


class Backend(Protocol):
    """Where pictures are indexed and searched. Calls are synchronous and thread-safe."""

    def index(self, picture: Picture, collection: str) -> bool:
        """Index a picture; False when this very picture was there already."""

    def delete(self, image_id: str, dao_id: str, collection: str) -> bool:
        """Forget a picture and say whether it was there."""

    def search(
        self, query: Query, collection: str, *, top_k: int, dao_id: str | None = None
    ) -> list[Hit]:
        """Return the `top_k` pictures most similar to a text or an image, best first."""

    def stats(self, collection: str) -> Stats:
        """Return what a collection holds."""

    def close(self) -> None:
        """Release connections, or the store."""


class RemoteBackend:
    """Goes through the HTTP routes of a running service."""

    def __init__(self, client: VisionEncoderClient) -> None:
        self._client = client

    def index(self, picture: Picture, collection: str) -> bool:
        return self._client.index_image(
            picture.image_id,
            picture.data,
            dao_id=picture.dao_id,
            image_path=picture.image_path,
            metadata=dict(picture.metadata),
            collection=collection,
        )

    def delete(self, image_id: str, dao_id: str, collection: str) -> bool:
        return self._client.delete_image(image_id, dao_id=dao_id, collection=collection)

    def search(
        self, query: Query, collection: str, *, top_k: int, dao_id: str | None = None
    ) -> list[Hit]:
        hits = self._client.search(query, top_k=top_k, dao_id=dao_id, collection=collection)
        return [Hit(**hit) for hit in hits]

    def stats(self, collection: str) -> Stats:
        return Stats(**self._client.stats(collection))

    def close(self) -> None:
        self._client.close()


class LocalBackend:
    """Runs an encoder and a store in this process."""

    def __init__(self, encoder: Encoder, store: Store) -> None:
        self._encoder = encoder
        self._store = store
        self._pictures = PictureIndex(store, identity_of(encoder))

    def index(self, picture: Picture, collection: str) -> bool:
        if self._pictures.holds(picture, collection):
            return False
        vector = self._encoder.encode_images([picture.data])[0]
        self._pictures.add(picture, vector, collection)
        return True

    def delete(self, image_id: str, dao_id: str, collection: str) -> bool:
        return self._pictures.delete(image_id, dao_id, collection)

    def search(
        self, query: Query, collection: str, *, top_k: int, dao_id: str | None = None
    ) -> list[Hit]:
        if isinstance(query, bytes):
            vector = self._encoder.encode_images([query])[0]
        elif query.strip():
            vector = self._encoder.encode_texts([query])[0]
        else:
            raise InvalidSearch("the text to search for is empty")
        return self._pictures.search(vector, collection, top_k=top_k, dao_id=dao_id)

    def stats(self, collection: str) -> Stats:
        return self._pictures.stats(collection)

    def close(self) -> None:
        self._store.close()


def identity_of(encoder: Encoder) -> ModelIdentity:
    """Return what a collection remembers of the encoder that filled it.

    Of a local folder its name counts, not where it lies: the digest tells its weights.
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
