"""Handlers of the GET routes and of uploads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from bento.web.api_docs import DOCS_HEADERS, DOCS_PAGE, DOCS_SCRIPT, openapi
from bento.web.forms import read_form
from bento.web.responses import Handler


async def _home(_: Request) -> Response:
    return RedirectResponse("/ui")


async def _docs(_: Request) -> Response:
    return HTMLResponse(DOCS_PAGE, headers=DOCS_HEADERS)


async def _docs_script(_: Request) -> Response:
    return Response(DOCS_SCRIPT, media_type="text/javascript")


async def _openapi(request: Request) -> Response:
    return JSONResponse(openapi(request.app.state.service.settings.root_path))


async def _health(request: Request) -> Any:
    return await request.app.state.service.loaded.state.health()


async def _info(request: Request) -> Any:
    return request.app.state.service.loaded.state.info


async def _metrics(request: Request) -> Response:
    metrics = request.app.state.service.metrics
    return Response(metrics.exposition(), media_type=metrics.content_type)


async def _embed_image_upload(request: Request) -> Any:
    form = await read_form(request, "file", "normalize")
    normalize = form.normalize
    return await request.app.state.service.loaded.embedding.image(form.picture, normalize)


async def _embed_images(request: Request) -> Any:
    service = request.app.state.service
    form = await read_form(
        request, "files", "normalize", max_files=service.settings.max_request_items
    )
    return await service.loaded.embedding.images(form.pictures, form.normalize)


HANDLERS: Final[Mapping[str, Handler]] = {
    "home": _home,
    "docs": _docs,
    "docs_script": _docs_script,
    "openapi": _openapi,
    "health": _health,
    "info": _info,
    "metrics": _metrics,
    "embed_image_upload": _embed_image_upload,
    "embed_images": _embed_images,
}
