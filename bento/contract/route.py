"""The description of one route, without its handler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

Method = Literal["GET", "POST", "PATCH", "DELETE"]
Tag = Literal["Embedding", "Service"]


@dataclass(frozen=True)
class Parameter:
    """A parameter in the path or the query of a route."""

    name: str
    description: str
    where: Literal["path", "query"] = "query"
    type: Literal["string", "integer", "boolean"] = "string"
    example: str = ""
    maximum: int | None = None  # of an integer; the minimum is 1


@dataclass(frozen=True)
class Route:
    """A route of the service.

    `body` is the model of a JSON body, `form` that of a multipart form. A JSON body may have
    `values` values, and `item_values` more for each of MAX_REQUEST_ITEMS; it may have `bytes` bytes
    if that is less than MAX_REQUEST_BYTES. `answer` is the model of
    a JSON answer, or the media type of any other answer; it is empty for a redirect. `client` is
    the client method that calls the route. If `corpus` is true, the parity corpus must use it.
    """

    name: str
    method: Method
    path: str
    summary: str
    answer: type[BaseModel] | str
    body: type[BaseModel] | None = None
    form: type[BaseModel] | None = None
    values: int = 100
    item_values: int = 0
    bytes: int | None = None
    parameters: tuple[Parameter, ...] = ()
    example: Any = None  # a JSON body, or the fields of a form
    more: str = ""  # further sentences for the documentation
    client: str | None = None
    corpus: bool = True

    @property
    def is_api(self) -> bool:
        """Whether BentoML serves the route: a POST with a JSON body."""
        return self.method == "POST" and self.body is not None
