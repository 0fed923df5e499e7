"""Write the API documents from the route table: OpenAPI, the page at /docs, and docs/api.md.

python -m bento.web.api_docs >docs/api.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from bento.contract.embedding import ErrorResponse
from bento.contract.errors import InvalidSearch, ModelLoadError, ServiceError, StoreUnavailable
from bento.contract.openai import OpenAIErrorResponse
from bento.contract.route import Parameter, Route
from bento.contract.routes import GROUPS, ROUTES
from bento.version import VERSION

# BentoML contains and serves the assets, so the page loads nothing from another host.
DOCS_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>Vision encoder: API</title>
  <link rel="stylesheet" href="static_content/swagger-ui.css">
</head>
<body>
  <div id="swagger-ui"></div>
  <script src="static_content/swagger-ui-bundle.js"></script>
  <script src="docs/start.js"></script>
</body>
</html>
"""
DOCS_SCRIPT: Final = """SwaggerUIBundle({
  url: "openapi.json", dom_id: "#swagger-ui", tryItOutEnabled: true,
});
"""
DOCS_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
}

_ABOUT: Final = (
    "CLIP embeddings of texts and images, and image search. Every error is `{error, code}`: a "
    "message and a stable code. On `/v1` errors have OpenAI's shape. With "
    "`Accept: application/x-npy` the embedding routes answer with a .npy file."
)
_KEYS: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "One of the keys in API_KEY."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_ERROR: Final = "What was wrong, and what is allowed"
_CONVENTIONS: Final = """\
## Conventions

* **Errors** are `{"error": "what was wrong and what is allowed", "code": "…"}` with the HTTP
  status. On `/v1` they have OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`.
  [Error codes](#error-codes) lists the codes.
* **Keys**: if the service has an `API_KEY`, send one of its keys as `Authorization: Bearer KEY` or
  `X-API-Key: KEY`.
* **`.npy`**: with `Accept: application/x-npy` the embedding routes answer with a float32 array of
  shape `(dimension,)` or `(n, dimension)`. The row of a bad image is NaN.
* **Images** are JPEG, PNG, WebP, GIF (the first frame), BMP or TIFF, in colour or greyscale (up to
  16 bits, or floats from 0 to 1). The service applies the EXIF orientation and lays transparent
  images over white.
* **Texts** are truncated at the model's context length (`context_length` in `/info`).
* **Time**: a request may take 60 s, and its body 40 s of that. After a 429, wait for `Retry-After`
  seconds.
* **Request ids**: every answer has an `X-Request-ID`, yours if you send one. The log contains it.

OpenAI's client works without changes:

```python
from openai import OpenAI

client = OpenAI(base_url="http://localhost:8001/v1", api_key="none")  # or a key of the service
client.embeddings.create(
    model="local-dir:models/shapes",
    input=["a red circle", {"image": "https://example.org/cat.jpg"}],  # URLs: ALLOW_IMAGE_URLS
    dimensions=64,  # keeps the first 64 values and normalizes them again
)
```

Its exceptions have the service's message in `error.body["message"]`."""
_JSON: Final = "application/json"
_FORM: Final = "multipart/form-data"


def openapi(root_path: str = "") -> dict[str, Any]:
    """Return the OpenAPI document of all routes. A proxy serves them under `root_path`."""
    references, schemas = models_json_schema(
        sorted(_models(), key=str), ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for tag, routes in GROUPS.items():
        for route in (each for each in routes if each.answer):  # without redirects
            operation = _operation(route, references)
            paths.setdefault(route.path, {})[route.method.lower()] = {"tags": [tag], **operation}
    return {
        "openapi": "3.1.0",  # the first version that takes JSON Schema, as pydantic writes it
        "info": {"title": "Vision encoder", "version": VERSION, "description": _ABOUT},
        "servers": [{"url": root_path or "/"}],
        "tags": [{"name": tag} for tag in GROUPS],
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": _KEYS},
        "security": [{"bearer": []}, {"header": []}, {}],  # {}: no key if API_KEY is not set
    }


def _models() -> set[tuple[type[BaseModel], JsonSchemaMode]]:
    models: set[tuple[type[BaseModel], JsonSchemaMode]] = {
        (ErrorResponse, "serialization"),
        (OpenAIErrorResponse, "serialization"),
    }
    for route in ROUTES:
        models |= {(body, "validation") for body in (route.body, route.form) if body}
        if not isinstance(route.answer, str):
            models.add((route.answer, "serialization"))
    return models


def _operation(route: Route, references: Any) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary.rstrip("."),
        "description": route.more,
        "parameters": [_parameter(parameter) for parameter in route.parameters],
    }
    for media_type, body in ((_JSON, route.body), (_FORM, route.form)):
        if body:
            content = {"schema": references[body, "validation"]}
            if media_type == _JSON:
                content["example"] = route.example
            operation["requestBody"] = {"required": True, "content": {media_type: content}}
    error = OpenAIErrorResponse if route.path.startswith("/v1/") else ErrorResponse
    operation["responses"] = {
        "200": {"description": route.summary, **_content(route, references)},
        "default": {
            "description": _ERROR,
            "content": {_JSON: {"schema": references[error, "serialization"]}},
        },
    }
    return operation


def _content(route: Route, references: Any) -> dict[str, Any]:
    if isinstance(route.answer, str):
        return {"content": {route.answer: {}}} if route.answer else {}
    return {"content": {_JSON: {"schema": references[route.answer, "serialization"]}}}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": parameter.type}
    if parameter.maximum is not None:
        schema |= {"minimum": 1, "maximum": parameter.maximum}
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.where == "path",
        "schema": schema,
        "description": parameter.description,
    }


def markdown() -> str:
    """Return the text of docs/api.md."""
    lines = ["# API", "", _ABOUT, "", "`make docs` generates this page.", "", _CONVENTIONS]
    for group, routes in GROUPS.items():
        lines += ["", f"## {group}"]
        for route in routes:
            lines += ["", *_section(route)]
    lines += ["", "## Error codes", "", "| code | status | when |", "|---|---|---|"]
    lines += [f"| `{code}` | {status} | {when} |" for status, code, when in _codes()]
    return "\n".join(lines) + "\n"


def _codes() -> list[tuple[int, str, str]]:
    """Return status, code and meaning of every error that a route can answer with."""
    classes, errors = [ServiceError], ServiceError.__module__
    for each in classes:  # grows while it is read
        classes += (sub for sub in each.__subclasses__() if sub.__module__ == errors)
    codes = {(500, ServiceError.code, "The service failed. This is a bug.")}
    for each in classes:
        if each in (InvalidSearch, ModelLoadError):  # the code of another error; only at the start
            continue
        if not each.__subclasses__() or each is StoreUnavailable:
            codes.add((each.status, each.code, (each.__doc__ or "").partition("\n")[0]))
    return sorted(codes)


def _section(route: Route) -> list[str]:
    about = f"{route.summary} {route.more}".strip()
    lines = [f"### `{route.method} {route.path}`", "", about]
    rows: list[tuple[str, str, str]] = [
        (f"`{each.name}`", each.where, _cell(each.description)) for each in route.parameters
    ]
    places: list[tuple[str, type[BaseModel] | None]] = [("JSON", route.body), ("form", route.form)]
    for place, body in places:
        if body:
            for name, field in body.model_fields.items():
                shown = f"`{name}`" if field.is_required() else f"`{name}`?"
                rows.append((shown, place, _cell(field.description)))
    if not isinstance(route.answer, str):
        rows += [(f"`{name}`", "answer", _cell(about)) for name, about in _described(route.answer)]
    if rows:
        lines += ["", "| field | in | meaning |", "|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    if not isinstance(route.answer, str):
        lines += ["", f"Answer: `{_shape(route.answer)}`."]
    elif route.answer:
        lines += ["", f"Answer: {route.answer}."]
    return [*lines, "", "```console", *_curl(route), "```"]


def _shape(model: type[BaseModel]) -> str:
    """Return the fields of an answer, with those of the objects in it: `{hits: [{id}], count}`."""
    shown = []
    for name, field in model.model_fields.items():
        inner, is_list = _inner(field.annotation)
        fields = _shape(inner) if inner else ""
        shown.append(f"{name}: [{fields}]" if is_list else f"{name}: {fields}" if inner else name)
    return "{" + ", ".join(shown) + "}"


def _described(model: type[BaseModel], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each answer field that has a description, and the description."""
    for name, field in model.model_fields.items():
        inner, is_list = _inner(field.annotation)
        if field.description:
            yield before + name, field.description
        if inner:
            yield from _described(inner, f"{before}{name}{'[]' if is_list else ''}.")


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the model that a field holds, if any, and whether the field is a list of it."""
    models = [
        each
        for each in (annotation, *get_args(annotation))
        if isinstance(each, type) and issubclass(each, BaseModel)
    ]
    return (models[0], models[0] is not annotation) if models else (None, False)


def _cell(description: str | None) -> str:
    return (description or "").replace("|", "\\|")


def _curl(route: Route) -> list[str]:
    path = route.path
    for parameter in route.parameters:
        path = path.replace(f"{{{parameter.name}}}", parameter.example)
    method = "" if route.method in ("GET", "POST") else f" -X {route.method}"
    if route.method == "POST" and not (route.body or route.form):
        method = " -X POST"
    lines = [f"$ curl -s{method} localhost:8001{path}"]
    if route.body:
        lines[0] += " -H 'Content-Type: application/json' \\"
        lines.append(f"    -d '{json.dumps(route.example)}'")
    if route.form:
        lines[0] += "".join(f" -F '{name}={value}'" for name, value in route.example.items())
    return lines


if __name__ == "__main__":
    print(markdown(), end="")
