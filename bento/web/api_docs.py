"""The API's description: BentoML's OpenAPI document, completed with the mounted routes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, get_type_hints

from pydantic import BaseModel

from bento.contract.embedding import (
    EmbeddingResponse,
    ErrorResponse,
    HealthResponse,
    ImagesResponse,
    InfoResponse,
)
from bento.version import VERSION

# The assets are part of BentoML and served by it: nothing comes from another host.
DOCS_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>Vision encoder: API</title>
  <link rel="stylesheet" href="/static_content/swagger-ui.css">
</head>
<body>
  <div id="swagger-ui"></div>
  <script src="/static_content/swagger-ui-bundle.js"></script>
  <script src="/docs/start.js"></script>
</body>
</html>
"""
DOCS_SCRIPT: Final = """SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", tryItOutEnabled: true,
});
"""
DOCS_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
}

_ABOUT: Final = (
    "CLIP embeddings of texts and images, and image search. Every error is "
    "`{error, code}`: a sentence that says what was wrong and what is allowed, and a stable code. "
    "With `Accept: application/x-npy` the embedding routes answer with the bytes of a .npy file."
)
_UPLOAD: Final = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "normalize": {"type": "boolean"},
                },
            }
        }
    },
}
_SEARCH_UPLOAD: Final = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "search": {
                        "type": "string",
                        "description": "The rest of the search as JSON, as POST /search takes it.",
                    },
                },
            }
        }
    },
}
_UPLOADS: Final = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "properties": {
                    "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    "normalize": {"type": "boolean"},
                },
            }
        }
    },
}
_KEYS: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of API_KEY."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

Mode = Literal["validation", "serialization"]
_WRONG: Final = "What was wrong and what is allowed"

# What the document says of routes that BentoML does not know: method, path, summary, answer
# (None: no JSON) and parameters.
Described = tuple[str, str, str, type[BaseModel] | None, Sequence[dict[str, Any]]]
_MOUNTED: Final[tuple[Described, ...]] = (
    ("get", "/health", "Whether the device answers", HealthResponse, ()),
    ("get", "/info", "The model and the limits", InfoResponse, ()),
    ("post", "/embed/image/upload", "Embed an uploaded image", EmbeddingResponse, ()),
    ("post", "/embed/images", "Embed many uploaded images", ImagesResponse, ()),
)
_FORMS: Final = {
    "/embed/image/upload": _UPLOAD,
    "/embed/images": _UPLOADS,
    "/search/upload": _SEARCH_UPLOAD,
}


def complete(
    document: dict[str, Any],
    apis: Mapping[str, Callable[..., Any]],
    more: Sequence[Described] = (),
    bodies: Mapping[tuple[str, str], type[BaseModel]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return BentoML's OpenAPI document with our own words, bodies, errors and mounted routes.

    `apis` are the functions of BentoML's routes, by path: what it says of their bodies leaves out
    what is required, what may be null, and that nothing else is taken. `bodies` are of `more`, by
    method and path. BentoML's introduction is dropped: it loads pictures from other hosts.
    """
    schemas = _Schemas()
    paths = {
        path: _in_our_words(item, schemas, apis.get(path))
        for path, item in document["paths"].items()
    }
    for method, path, summary, answer, parameters in (*_MOUNTED, *more):
        paths.setdefault(path, {})[method] = {
            "summary": summary,
            "tags": ["Service APIs"],
            "parameters": list(parameters),
            **({"requestBody": _FORMS[path]} if path in _FORMS else {}),
            **(
                {"requestBody": schemas.body(bodies[key])}
                if (key := (method, path)) in bodies
                else {}
            ),
            "responses": {
                "200": schemas.json(summary, answer) if answer else {"description": summary},
                "default": schemas.json(_WRONG, ErrorResponse),
            },
        }
    return {
        "openapi": "3.1.0",  # whose schemas are JSON Schema, as pydantic's are
        "info": {"title": "Vision encoder", "version": VERSION, "description": _ABOUT},
        "tags": [
            {"name": "Service APIs", "description": "Embed texts and images, find pictures."},
            {"name": "Infrastructure", "description": "For supervisors and Prometheus."},
        ],
        "paths": paths,
        "components": {"schemas": schemas.all, "securitySchemes": _KEYS},
        "security": [{"bearer": []}, {"header": []}, {}],  # none, where there is no API_KEY
    }


class _Schemas:
    """The models that a document refers to."""

    def __init__(self) -> None:
        self.all: dict[str, Any] = {}

    def json(self, description: str, model: type[BaseModel]) -> dict[str, Any]:
        """Describe an answer."""
        return {"description": description, "content": self._content(model, "serialization")}

    def body(self, model: type[BaseModel]) -> dict[str, Any]:
        return {"required": True, "content": self._content(model, "validation")}

    def _content(self, model: type[BaseModel], mode: Mode) -> dict[str, Any]:
        schema = model.model_json_schema(mode=mode, ref_template="#/components/schemas/{model}")
        self.all |= schema.pop("$defs", {})
        self.all[model.__name__] = schema
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}


def _in_our_words(
    item: dict[str, Any], schemas: _Schemas, api: Callable[..., Any] | None
) -> dict[str, Any]:
    """Return one of BentoML's routes, its bodies and errors as they really are."""
    operations = {}
    for method, operation in item.items():
        by_status = {str(status): answer for status, answer in operation["responses"].items()}
        words = re.sub(r"<[^>]+>", "", operation.get("description", ""))
        operation = {
            **operation,
            "summary": words.partition(".")[0],
            "responses": {"200": by_status["200"]},
        }
        if api:
            models = get_type_hints(api)
            operation["requestBody"] = schemas.body(models["request"])
            operation["responses"] = {
                "200": schemas.json(by_status["200"]["description"], models["return"]),
                "default": schemas.json(_WRONG, ErrorResponse),
            }
        operations[method] = operation
    return operations
