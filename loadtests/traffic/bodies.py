"""The requests of each user, each with a check of its answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from loadtests.traffic.expected import Expected
from loadtests.traffic.inputs import TEXTS, indexed_picture, pictures

COLLECTION: Final = "loadtest"
"""The collection and the tenant of the indexed images."""

_BATCH_TEXTS: Final = 16
_BATCH_PICTURES: Final = 8
_TOP_K: Final = 5
_BOUNDARY: Final = "loadtest-boundary"
_JSON: Final = "application/json"


@dataclass(frozen=True)
class Prepared:
    """A request and its expected answer.

    Attributes:
        check: takes the parsed JSON of the answer. Raises `Wrong` if it belongs to another
            request, and any other exception if it is malformed.
        statuses: the expected HTTP statuses.
    """

    route: str
    content_type: str
    body: bytes
    check: Callable[[Any], None] = lambda _: None
    method: str = "POST"
    statuses: frozenset[int] = frozenset({200})

    def encoded(self) -> bytes:
        """Return the request in the format of HTTP/1.1."""
        head = (
            f"{self.method} {self.route} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


def prepared(user: str, expected: Expected, model: str) -> list[Prepared]:
    """Return the requests of a user: text, image, batch, search, router or openai."""
    return list(_REQUESTS[user](expected, model))


def searches() -> dict[str, dict[str, Any]]:
    """Return named bodies of `/search`: by text, by image, and by both."""
    bodies: dict[str, dict[str, Any]] = {}
    for n, text in enumerate(TEXTS[::4]):
        image = {"image_base64": base64_of(indexed_picture(7 * n))}
        bodies[f"text {n}"] = {"text": text}
        bodies[f"image {n}"] = {"image": image}
        bodies[f"both {n}"] = {"text": text, "image": image, "weights": [0.3, 0.7]}
    for body in bodies.values():
        body.update(collection=COLLECTION, dao_id=COLLECTION, top_k=_TOP_K)
    return bodies


def indexing(n: int) -> dict[str, Any]:
    """Return the body of `/images` that indexes image `n`."""
    image = base64_of(indexed_picture(n))
    return {"id": str(n), "image_base64": image, "collection": COLLECTION, "dao_id": COLLECTION}


def _texts(expected: Expected, _: str) -> Iterator[Prepared]:
    for text in TEXTS:
        yield _embedding("/embed/text", {"text": text}, expected, text)


def _images(expected: Expected, _: str) -> Iterator[Prepared]:
    for n, (name, data) in enumerate(pictures().items()):
        if n % 2:
            yield _embedding("/embed/image", {"image_base64": base64_of(data)}, expected, name)
        else:
            check = partial(_check_embedding, expected, name)
            yield upload("/embed/image/upload", "file", [data], check)


def _batches(expected: Expected, _: str) -> Iterator[Prepared]:
    def check(keys: Sequence[str], answer: Any) -> None:
        expected.check_vectors(keys, answer["embeddings"])

    for start in range(0, len(TEXTS) - _BATCH_TEXTS + 1, _BATCH_TEXTS):
        texts = TEXTS[start : start + _BATCH_TEXTS]
        yield posted("/embed/texts", {"texts": texts}, partial(check, texts))
    names = list(pictures())[: 2 * _BATCH_PICTURES]  # the smaller ones, up to 1024 x 768
    for start in (0, _BATCH_PICTURES):
        chosen = names[start : start + _BATCH_PICTURES]
        files = [pictures()[name] for name in chosen]
        yield upload("/embed/images", "files", files, partial(check, chosen))


def _searches(expected: Expected, _: str) -> Iterator[Prepared]:
    def check(name: str, answer: Any) -> None:
        expected.check_hits(name, answer["hits"])

    for name, body in searches().items():
        yield posted("/search", body, partial(check, name))


def _routed(expected: Expected, _: str) -> Iterator[Prepared]:
    def check_embedding(text: str, answer: Any) -> None:
        expected.check_vector(text, _data(answer)["embedding"])

    def check_hits(name: str, answer: Any) -> None:
        expected.check_hits(name, _data(answer)["images"])

    for text in TEXTS[::3]:
        payload = {"operation": "embed_text", "text": text}
        body = {"mode": "vision_embed", "payload": payload}
        yield posted("/route", body, partial(check_embedding, text))
    for name, search in searches().items():
        if name.startswith("text"):
            body = {
                "mode": "image_search",
                "message": search["text"],
                "dao_id": COLLECTION,
                "payload": {"top_k": _TOP_K, "collection": COLLECTION},
            }
            yield posted("/route", body, partial(check_hits, name))


def _openai(expected: Expected, model: str) -> Iterator[Prepared]:
    """Yield requests as OpenAI's client sends them: several inputs, embeddings in base64."""

    def check(texts: Sequence[str], answer: Any) -> None:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        vectors = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows]
        expected.check_vectors(texts, vectors)

    for n in range(0, len(TEXTS), 3):
        texts = TEXTS[n : n + 3]
        body = {"model": model, "input": texts, "encoding_format": "base64"}
        yield posted("/v1/embeddings", body, partial(check, texts))


_REQUESTS: Final = {
    "text": _texts,
    "image": _images,
    "batch": _batches,
    "search": _searches,
    "router": _routed,
    "openai": _openai,
}
USERS: Final = tuple(_REQUESTS)


def _data(answer: Any) -> Any:
    if not answer["ok"]:
        raise RuntimeError(answer["error"])
    return answer["data"]


def _check_embedding(expected: Expected, key: str, answer: Any) -> None:
    expected.check_vector(key, answer["embedding"])


def _embedding(route: str, body: dict[str, Any], expected: Expected, key: str) -> Prepared:
    return posted(route, body, partial(_check_embedding, expected, key))


def posted(
    route: str,
    body: dict[str, Any],
    check: Callable[[Any], None] = lambda _: None,
    statuses: Collection[int] = (200,),
) -> Prepared:
    """Return a POST request with a JSON body."""
    data = json.dumps(body).encode()
    return Prepared(route, _JSON, data, check, statuses=frozenset(statuses))


def upload(
    route: str,
    field: str,
    files: Sequence[bytes],
    check: Callable[[Any], None] = lambda _: None,
) -> Prepared:
    """Return a request that uploads JPEGs as a multipart form."""
    parts = b"".join(
        (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{n}.jpg"'
            "\r\nContent-Type: image/jpeg\r\n\r\n"
        ).encode()
        + data
        + b"\r\n"
        for n, data in enumerate(files)
    )
    content_type = f"multipart/form-data; boundary={_BOUNDARY}"
    return Prepared(route, content_type, parts + f"--{_BOUNDARY}--\r\n".encode(), check)


def base64_of(data: bytes) -> str:
    """Encode bytes in base64."""
    return base64.b64encode(data).decode()
