"""The API's description: BentoML's OpenAPI document, completed with the mounted routes."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from bento.schemas import (
    DeleteResponse,
    EmbeddingResponse,
    ErrorResponse,
    HealthResponse,
    InfoResponse,
    StatsResponse,
)

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
    """Return BentoML's OpenAPI document with the routes that it does not know."""
    paths = dict(document["paths"])
    schemas = dict(document.get("components", {}).get("schemas", {}))

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
    paths["/images/{id}"] = {
        "delete": operation("Forget a picture", DeleteResponse, parameters=_DELETE_PARAMETERS)
    }
    paths["/collections/{name}"] = {
        "get": operation("What a collection holds", StatsResponse, parameters=[_NAME])
    }
    return {
        **document,
        "paths": paths,
        "components": {**document.get("components", {}), "schemas": schemas},
    }


def _json(description: str, model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
