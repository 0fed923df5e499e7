"""The API's description: BentoML's OpenAPI document, completed with the mounted routes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel

from bento.schemas import (
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

# What the document says of routes that BentoML does not know: method, path, summary, answer
# (None: no JSON) and parameters.
Described = tuple[str, str, str, type[BaseModel] | None, Sequence[dict[str, Any]]]
_MOUNTED: Final[tuple[Described, ...]] = (
    ("get", "/health", "Whether the device answers", HealthResponse, ()),
    ("get", "/info", "The model and the limits", InfoResponse, ()),
    ("post", "/embed/image/upload", "Embed an uploaded image", EmbeddingResponse, ()),
    ("post", "/embed/images", "Embed many uploaded images", ImagesResponse, ()),
)
_BODIES: Final = {
    "/embed/image/upload": _UPLOAD,
    "/embed/images": _UPLOADS,
    "/search/upload": _SEARCH_UPLOAD,
}


def complete(document: dict[str, Any], more: Sequence[Described] = ()) -> dict[str, Any]:
    """Return BentoML's OpenAPI document with our own words, errors and mounted routes.

    Its introduction is dropped: it loads pictures from other hosts.
    """
    paths = {path: _with_our_errors(item) for path, item in document["paths"].items()}
    schemas = dict(document["components"]["schemas"])
    schemas[ErrorResponse.__name__] = ErrorResponse.model_json_schema()
    for method, path, summary, answer, parameters in (*_MOUNTED, *more):
        if answer:
            schema = answer.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {})
            schemas[answer.__name__] = schema
        paths.setdefault(path, {})[method] = {
            "summary": summary,
            "tags": ["Service APIs"],
            "parameters": list(parameters),
            **({"requestBody": _BODIES[path]} if path in _BODIES else {}),
            "responses": {
                "200": _json(summary, answer) if answer else {"description": summary},
                "default": _json("What was wrong and what is allowed", ErrorResponse),
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
        "components": {"schemas": schemas, "securitySchemes": _KEYS},
        "security": [{"bearer": []}, {"header": []}, {}],  # none, where there is no API_KEY
    }


def _with_our_errors(item: dict[str, Any]) -> dict[str, Any]:
    """Return one of BentoML's routes, its errors replaced by what is really answered."""
    operations = {}
    for method, operation in item.items():
        by_status = {str(status): answer for status, answer in operation["responses"].items()}
        responses = {"200": by_status["200"]}
        if "requestBody" in operation:
            responses["default"] = _json("What was wrong and what is allowed", ErrorResponse)
        words = re.sub(r"<[^>]+>", "", operation.get("description", ""))
        summary = words.partition(".")[0]
        operations[method] = {**operation, "summary": summary, "responses": responses}
    return operations


def _json(description: str, model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
