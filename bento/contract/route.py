"""What describes one route of the service, as data without a handler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

Method = Literal["GET", "POST", "PATCH", "DELETE"]
Tag = Literal["Embedding", "Service"]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a path or a query."""

    name: str
    description: str
    where: Literal["path", "query"] = "query"
    type: Literal["string", "integer", "boolean"] = "string"
    example: str = ""
    maximum: int | None = None  # of an integer, from 1


@dataclass(frozen=True)
class Route:
    """A route: `body` is JSON, `form` multipart; `answer` is JSON, or the media type of
    others, empty for a redirect.

    `client` is the client's method that calls it. A route of `corpus` is in the parity corpus.
    """

    name: str
    method: Method
    path: str
    summary: str
    answer: type[BaseModel] | str
    body: type[BaseModel] | None = None
    form: type[BaseModel] | None = None
    parameters: tuple[Parameter, ...] = ()
    example: Any = None  # a JSON body, or the fields of a form
    more: str = ""  # what else a reader has to know
    client: str | None = None
    corpus: bool = True

    @property
    def is_api(self) -> bool:
        """Whether BentoML serves it, as a method that takes JSON by POST."""
        return self.method == "POST" and self.body is not None
