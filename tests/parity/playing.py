"""Play the corpus against a service, and compare the answers of two services."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from tests.parity.corpus import CORPUS, Ask

TOLERANCE: Final = 1e-6  # of a number in an embedding or a score
HEADERS: Final = (  # compared; dates, lengths and ids may differ
    "allow",
    "cache-control",
    "content-security-policy",
    "content-type",
    "cross-origin-resource-policy",
    "etag",
    "location",
    "referrer-policy",
    "retry-after",
    "server",
    "www-authenticate",
    "x-content-type-options",
    "x-frame-options",
)
_VARY: Final = frozenset({"indexed_at", "revision"})  # fields; only an image has a revision


class Client(Protocol):
    """The method of httpx.Client and Starlette's TestClient that `play` calls."""

    @property
    def request(self) -> Callable[..., Any]: ...


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def play(client: Client, more: Mapping[str, str] | None = None) -> list[Answer]:
    """Send the requests of the corpus, with `more` headers, and return the answers in order."""
    answers = []
    for ask in CORPUS:
        headers = {**ask.given.get("headers", {}), **(more or {})}
        got = client.request(ask.method, ask.path, **{**ask.given, "headers": headers})
        headers = {name: got.headers[name] for name in HEADERS if name in got.headers}
        answers.append(Answer(got.status_code, headers, got.content))
    return answers


def differences(first: str, firsts: list[Answer], second: str, seconds: list[Answer]) -> list[str]:
    """Describe each difference: the request, the two services and their values."""
    return [
        f"{ask.name}: {what}, {first} has {short(a)}, {second} has {short(b)}"
        for ask, one, other in zip(CORPUS, firsts, seconds, strict=True)
        for what, a, b in _differ(ask, one, other)
    ]


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _differ(ask: Ask, one: Answer, other: Answer) -> Iterator[tuple[str, Any, Any]]:
    if one.status != other.status:
        yield "status", (one.status, one.body[:300]), (other.status, other.body[:300])
        return
    for name in HEADERS:
        a, b = _meaning(ask, name, one), _meaning(ask, name, other)
        if a != b:
            yield f"header {name}", a, b
    yield from _unequal("body", _readable(ask, one), _readable(ask, other))


def _meaning(ask: Ask, name: str, answer: Answer) -> str | None:
    value = answer.headers.get(name)
    if name == "allow" and value:
        return ", ".join(sorted(value.split(", ")))
    if name == "etag" and ask.path.startswith("/ui"):
        return "set" if value else None  # depends on the time of the file
    return value


def _readable(ask: Ask, answer: Answer) -> Any:
    """Decode a body into a value to compare."""
    media_type = answer.headers.get("content-type", "")
    if ask.path == "/metrics" and media_type.startswith("text/"):
        families = text_string_to_metric_families(answer.body.decode())
        return {
            family.name: sorted({label for sample in family.samples for label in sample.labels})
            for family in families
        }
    if media_type.startswith("application/json"):
        return json.loads(answer.body) if answer.body else None
    if media_type.startswith("application/x-npy"):
        return np.load(io.BytesIO(answer.body)).tolist()
    if media_type.startswith("text/"):
        # replace addresses of objects
        return re.sub(r"0x[0-9a-f]{8,}", "0x", answer.body.decode())
    return answer.body


def _unequal(where: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            if name not in _VARY:
                there = f"{where}.{name}"
                if name in one and name in other:
                    yield from _unequal(there, one[name], other[name])
                else:
                    yield there, one.get(name, "nothing"), other.get(name, "nothing")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _unequal(f"{where}[{i}]", a, b)
    elif isinstance(one, float) and isinstance(other, float):
        if abs(one - other) > TOLERANCE or (one != one) != (other != other):
            yield where, one, other
    elif one != other or type(one) is not type(other):
        yield where, one, other
