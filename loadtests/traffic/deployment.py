"""Query and prepare a deployment before the load: its info, its index, its idle answers."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import httpx
import numpy as np

from loadtests.traffic.bodies import indexing, searches
from loadtests.traffic.expected import Expected
from loadtests.traffic.inputs import INDEXED, TEXTS, pictures

_SECONDS: Final = 90.0  # timeout of a request
_THREADS: Final = 4  # that index images
_ATTEMPTS: Final = 20  # for a request that gets a 429
_INFO: Final = ("model_name", "device", "embedding_dim", "qdrant_enabled")
_NORM: Final = 1e-3  # the largest allowed difference of a norm from 1
# Two embeddings with a higher cosine count as the same. With the bundled model, the cosines of
# different inputs are at most 0.93.
_SAME: Final = 0.9999


class Unusable(Exception):
    """The deployment cannot be tested. The message explains why and what to do."""


def keys() -> dict[str, str]:
    """Return the header with the first key of API_KEY; empty if there is none."""
    key = os.environ.get("API_KEY", "").split(",")[0].strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


class Deployment:
    """A client for the service at `host`. Every method may raise `Unusable`."""

    def __init__(self, host: str) -> None:
        self.host = host
        # The load ignores the proxies of the environment, so these requests do, too.
        self._client = httpx.Client(
            base_url=host, headers=keys(), timeout=_SECONDS, trust_env=False
        )

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def info(self) -> dict[str, Any]:
        """Return model_name, device, embedding_dim and qdrant_enabled from `/info`."""
        with self._understood():
            answer = self._ask("GET", "/info")
            return {name: answer[name] for name in _INFO}

    def index(self, progress: Callable[[], None]) -> None:
        """Index the images for the searches. Images that are already indexed cost little."""

        def share(first: int) -> None:
            # With a shared client, four threads once failed with "Bad file descriptor". httpx may
            # close a connection in one thread while another is about to use it.
            with Deployment(self.host) as own, own._understood():
                for n in range(first, INDEXED, _THREADS):
                    own._ask("POST", "/images", indexing(n))
                    progress()

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(share, range(_THREADS)))

    def expected(self, embeddings: Expected | None, *, with_searches: bool) -> Expected:
        """Return the table of correct answers. Query missing embeddings, one at a time."""
        if embeddings is None:
            vectors = {text: self._embed("text", {"text": text}) for text in TEXTS}
            for name, data in pictures().items():
                image = base64.b64encode(data).decode()
                vectors[name] = self._embed("image", {"image_base64": image})
            self._examine(vectors)
        else:
            vectors = dict(zip(embeddings.keys, embeddings.matrix, strict=True))
        hits = {}
        if with_searches:
            for name, body in searches().items():
                with self._understood():
                    found = self._ask("POST", "/search", body)["hits"]
                    hits[name] = [(hit["id"], hit["score"]) for hit in found]
        return Expected(vectors, hits)

    def _embed(self, kind: str, body: dict[str, Any]) -> np.ndarray:
        with self._understood():
            return np.array(self._ask("POST", f"/embed/{kind}", body)["embedding"], np.float32)

    def _examine(self, vectors: dict[str, np.ndarray]) -> None:
        """Raise `Unusable` unless these are plausible embeddings of different inputs."""
        dim = self.info()["embedding_dim"]
        for name, vector in vectors.items():
            norm = float(np.linalg.norm(vector))
            if vector.shape != (dim,) or not abs(norm - 1) <= _NORM:
                raise Unusable(
                    f"the embedding of {name!r} from {self.host} has the shape {vector.shape} and "
                    f"the norm {norm:.3f}; expected are ({dim},), from its embedding_dim, and 1"
                )
        names = [name for name in vectors if name.isascii()]  # some models do not know Ukrainian
        matrix = np.array([vectors[name] for name in names])
        cosines = np.triu(matrix @ matrix.T, 1)
        one, other = divmod(int(cosines.argmax()), len(names))
        if cosines[one, other] > _SAME:
            raise Unusable(
                f"{self.host} returns the same embedding for {names[one]!r} and {names[other]!r}"
            )

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Raise `Unusable` for an answer without the expected fields."""
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            raise Unusable(
                f"{self.host} does not answer like a vision encoder: {error!r}"
            ) from None

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        for _ in range(_ATTEMPTS):
            try:
                response = self._client.request(method, path, json=body)
            except httpx.TransportError as error:
                raise Unusable(f"{self.host} does not answer {method} {path}: {error}") from None
            if response.status_code == 429:
                time.sleep(float(response.headers.get("Retry-After", 1)))
                continue
            if response.status_code != 200:
                raise Unusable(
                    f"{self.host}{path} answered {response.status_code}: {response.text[:300]}. "
                    "(Set API_KEY if the service requires a key. If it has no search, use "
                    "--weights search=0,router=0.)"
                )
            return response.json()
        raise Unusable(f"{self.host} is busy: {method} {path} got a 429 {_ATTEMPTS} times")
