"""The routes of the index that are no JSON POST: lists, deletion, thumbnails, the search page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from bento.contract.search import (
    CONTROL,
    DeleteResponse,
    DropResponse,
    ListResponse,
    PublishResponse,
    SearchRequest,
    SearchResponse,
    StatsResponse,
    UpdateRequest,
    UpdateResponse,
    describe,
)
from rag.errors import InvalidSearch, RagError, UnsupportedMediaType
from rag.indexing.backends import image_example
from rag.pictures.index import DEFAULT_DAO_ID, PAGE
from rag.search.searcher import degraded
from rag.web.answering import IndexAnswering

Handler = Callable[[Request], Awaitable[Response]]

_PAGE: Final = Path(__file__).parent / "page"
_MEDIA_TYPES: Final = {".js": "text/javascript", ".css": "text/css"}
_ASSETS: Final = {
    file.name: _MEDIA_TYPES[file.suffix] for file in _PAGE.iterdir() if file.suffix in _MEDIA_TYPES
}
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",  # asked for each time; answered 304 while it is the same
}
_UNTOLD: Final = ("", "application/octet-stream")  # types of a picture that do not say so


async def page(_: Request) -> Response:
    return FileResponse(_PAGE / "index.html", media_type="text/html", headers=_PAGE_HEADERS)


async def asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _ASSETS:
        raise InvalidSearch(f"the page has no file {name[:80]!r}")
    return FileResponse(_PAGE / name, media_type=_ASSETS[name], headers=_PAGE_HEADERS)


async def thumbnail(request: Request) -> Response:
    query = request.query_params
    data, content_hash = await _index(request).thumbnail(
        _image_id(request), query.get("dao_id", DEFAULT_DAO_ID), query.get("collection")
    )
    headers = {
        "ETag": f'"{content_hash}"',
        "Cache-Control": "private, max-age=300",
    }
    if request.headers.get("If-None-Match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/jpeg", headers=headers)


async def search_upload(request: Request) -> Response:
    async with request.form(max_files=1, max_fields=2) as form:
        if unknown := form.keys() - {"file", "search"}:
            raise InvalidSearch(f"{', '.join(sorted(unknown))}: not a field of this request")
        file, others = form.get("file"), form.get("search", "{}")
        if not isinstance(file, UploadFile) or not isinstance(others, str):
            raise InvalidSearch(
                "send the picture as multipart/form-data in a field named file, and the rest of "
                "the search as JSON in a field named search"
            )
        media_type = (file.content_type or "").partition(";")[0].strip().lower()
        if not media_type.startswith("image/") and media_type not in _UNTOLD:
            raise UnsupportedMediaType(
                f"a picture is sent as image/… or application/octet-stream, not {media_type[:80]}"
            )
        data = await file.read()
    try:
        body = from_json(others)  # no deeper than the JSON of the other routes
        given = SearchRequest.model_validate({**body, "image": image_example(data)})
    except ValidationError as error:
        raise InvalidSearch(describe(error)) from None
    except (TypeError, ValueError) as error:
        raise InvalidSearch(f"the field search is no JSON object: {error}") from None
    return await answer_search(_index(request), given)


async def answer_search(index: IndexAnswering, request: SearchRequest) -> Response:
    """Answer a search, or say in its own shape why it cannot be made now."""
    try:
        return _json(await index.search(request))
    except RagError as error:
        if error.status == 400:  # the request's own fault
            raise
        return JSONResponse(degraded(error, request).model_dump(), error.status)


async def delete_image(request: Request) -> Response:
    query = request.query_params
    staged = query.get("staged", "false")
    if staged not in ("true", "false"):
        raise InvalidSearch(f"staged is {staged[:80]!r}; allowed are true and false")
    return _json(
        await _index(request).delete(
            _image_id(request),
            query.get("dao_id", DEFAULT_DAO_ID),
            query.get("collection"),
            staged=staged == "true",
        )
    )


async def update_image(request: Request) -> Response:
    try:
        given = UpdateRequest.model_validate_json(await request.body())
    except ValidationError as error:
        raise InvalidSearch(describe(error)) from None
    query = request.query_params
    return _json(
        await _index(request).update(
            _image_id(request),
            query.get("dao_id", DEFAULT_DAO_ID),
            query.get("collection"),
            given,
        )
    )


async def list_images(request: Request) -> Response:
    query = request.query_params
    limit = query.get("limit", "1000")
    if not limit.isdecimal() or len(limit) > 80:
        raise InvalidSearch(f"limit is {limit[:80]!r}; allowed are 1 to {PAGE}")
    return _json(
        await _index(request).page(
            request.path_params["name"],
            generation=query.get("generation"),
            dao_id=query.get("dao_id"),
            limit=int(limit),
            start=query.get("start"),
        )
    )


async def stats(request: Request) -> Response:
    return _json(await _index(request).stats(request.path_params["name"]))


async def publish(request: Request) -> Response:
    return _json(await _index(request).publish(request.path_params["name"]))


async def drop(request: Request) -> Response:
    parameters = request.path_params
    return _json(await _index(request).drop(parameters["name"], parameters["generation"]))


def _image_id(request: Request) -> str:
    """Return the id that the URL names. Raises `InvalidSearch` where it could be none."""
    if found := CONTROL.search(request.scope["path"]):  # a route leaves out a newline at the end
        raise InvalidSearch(f"the URL has a control character, {found[0]!r}; no id has one")
    image_id: str = request.path_params["id"]
    return image_id


def _index(request: Request) -> IndexAnswering:
    index: IndexAnswering = request.app.state.service.index
    return index


def _json(answer: BaseModel) -> JSONResponse:
    return JSONResponse(answer.model_dump())


ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("GET", "/ui", page),
    ("GET", "/ui/{name}", asset),
    ("POST", "/search/upload", search_upload),
    ("GET", "/images/{id:path}/thumbnail", thumbnail),
    ("PATCH", "/images/{id:path}", update_image),
    ("DELETE", "/images/{id:path}", delete_image),
    ("GET", "/collections/{name}", stats),
    ("GET", "/collections/{name}/images", list_images),
    ("POST", "/collections/{name}/publish", publish),
    ("DELETE", "/collections/{name}/generations/{generation}", drop),
)


def _parameter(name: str, where: str, description: str, **schema: Any) -> dict[str, Any]:
    parameter = {"name": name, "in": where, "required": where == "path"}
    return {**parameter, "schema": {"type": "string", **schema}, "description": description}


_ID: Final = _parameter("id", "path", "Your name for the picture.")
_NAME: Final = _parameter("name", "path", "The collection.")
_DAO_ID: Final = _parameter("dao_id", "query", "The tenant that the picture belongs to.")
_COLLECTION: Final = _parameter("collection", "query", "Other than IMAGE_SEARCH_COLLECTION.")
_STAGED: Final = _parameter(
    "staged", "query", "true: of the generation that is being filled.", type="boolean"
)

# What the docs say of them: method, path, summary, answer (None: no JSON), parameters.
DESCRIBED: Final[
    tuple[tuple[str, str, str, type[BaseModel] | None, tuple[dict[str, Any], ...]], ...]
] = (
    ("get", "/ui", "The search page", None, ()),
    ("post", "/search/upload", "Find pictures by an uploaded one", SearchResponse, ()),
    ("get", "/images/{id}/thumbnail", "A preview, JPEG", None, (_ID, _DAO_ID, _COLLECTION)),
    (
        "patch",
        "/images/{id}",
        "Replace where a picture lies, or its metadata",
        UpdateResponse,
        (_ID, _DAO_ID, _COLLECTION),
    ),
    (
        "delete",
        "/images/{id}",
        "Forget a picture",
        DeleteResponse,
        (_ID, _DAO_ID, _COLLECTION, _STAGED),
    ),
    ("get", "/collections/{name}", "What a collection holds", StatsResponse, (_NAME,)),
    (
        "get",
        "/collections/{name}/images",
        "List pictures, page by page",
        ListResponse,
        (
            _NAME,
            _DAO_ID,
            _parameter("limit", "query", "1 to 1000.", type="integer", minimum=1, maximum=PAGE),
            _parameter("start", "query", "`next` of the page before."),
            _parameter("generation", "query", "Another generation than the published one."),
        ),
    ),
    (
        "post",
        "/collections/{name}/publish",
        "Make the generation of this service's model the published one",
        PublishResponse,
        (_NAME,),
    ),
    (
        "delete",
        "/collections/{name}/generations/{generation}",
        "Delete a generation that is not published",
        DropResponse,
        (_NAME, _parameter("generation", "path", "8 hexadecimal digits.")),
    ),
)

# The JSON bodies that they take.
BODIES: Final[dict[tuple[str, str], type[BaseModel]]] = {("patch", "/images/{id}"): UpdateRequest}
