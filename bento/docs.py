"""The API's description: BentoML's OpenAPI document, completed with the mounted routes."""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic import BaseModel

from bento.schemas import (
    DeleteResponse,
    EmbeddingResponse,
    ErrorResponse,
    HealthResponse,
    ImagesResponse,
    InfoResponse,
    StatsResponse,
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
  <script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", tryItOutEnabled: true})
  </script>
</body>
</html>
"""

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
_NAME: Final = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_DELETE_PARAMETERS: Final = [
    {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
    {
        "name": "dao_id",
        "in": "query",
        "schema": {"type": "string", "default": "default"},
        "description": "The tenant that the picture belongs to.",
    },
    {"name": "collection", "in": "query", "schema": {"type": "string"}},
]


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Return BentoML's OpenAPI document with our own words, errors and mounted routes.

    Its introduction is dropped: it loads pictures from other hosts.
    """
    paths = {path: _with_our_errors(item) for path, item in document["paths"].items()}
    schemas = dict(document["components"]["schemas"])

    def operation(summary: str, answer: type[BaseModel], **more: Any) -> dict[str, Any]:
        for model in (answer, ErrorResponse):
            schemas[model.__name__] = model.model_json_schema()
        return {
            "summary": summary,
            "tags": ["Service APIs"],
            "responses": {
                "200": _json(summary, answer),
                "default": _json("What was wrong and what is allowed", ErrorResponse),
            },
            **more,
        }

    paths["/health"] = {"get": operation("Whether the device answers", HealthResponse)}
    paths["/info"] = {"get": operation("The model and the limits", InfoResponse)}
    paths["/embed/image/upload"] = {
        "post": operation("Embed an uploaded image", EmbeddingResponse, requestBody=_UPLOAD)
    }
    paths["/embed/images"] = {
        "post": operation("Embed many uploaded images", ImagesResponse, requestBody=_UPLOADS)
    }
    paths["/images/{id}"] = {
        "delete": operation("Forget a picture", DeleteResponse, parameters=_DELETE_PARAMETERS)
    }
    paths["/collections/{name}"] = {
        "get": operation("What a collection holds", StatsResponse, parameters=[_NAME])
    }
    return {
        "openapi": "3.1.0",  # whose schemas are JSON Schema, as pydantic's are
        "info": {"title": "Vision encoder", "version": VERSION, "description": _ABOUT},
        "tags": [
            {"name": "Service APIs", "description": "Embed texts and images, find pictures."},
            {"name": "Infrastructure", "description": "For supervisors and Prometheus."},
        ],
        "paths": paths,
        "components": {"schemas": schemas},
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
