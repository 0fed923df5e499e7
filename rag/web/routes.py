"""Handlers of the search routes that do not take JSON by POST, and of the search page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from bento.contract.errors import InvalidSearch, describe
from bento.contract.images import CONTROL, DEFAULT_DAO_ID, UpdateRequest
from bento.contract.limits import MAX_LISTED
from bento.contract.search import SearchRequest, image_example
from bento.web.forms import read_form
from rag.web.index import Index

_PAGE: Final = Path(__file__).parent / "page"
_MEDIA_TYPES: Final = {".js": "text/javascript", ".css": "text/css"}
_FILES: Final = {
    file.name: _MEDIA_TYPES[file.suffix] for file in _PAGE.iterdir() if file.suffix in _MEDIA_TYPES
}
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",  # browsers revalidate; an unchanged file is answered with 304
}


async def _page(_: Request) -> Response:
    return FileResponse(_PAGE / "index.html", media_type="text/html", headers=_PAGE_HEADERS)


async def _page_file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _FILES:
        raise InvalidSearch(f"the search page has no file {name[:80]!r}")
    return FileResponse(_PAGE / name, media_type=_FILES[name], headers=_PAGE_HEADERS)


async def _thumbnail(request: Request) -> Response:
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


async def _search_upload(request: Request) -> Any:
    form = await read_form(request, "file", "search")
    example = image_example(form.picture)
    try:
        body = from_json(form.fields.get("search", "{}"))  # limits the depth, as other routes do
        given = SearchRequest.model_validate({**body, "image": example})
    except ValidationError as error:
        raise InvalidSearch(describe(error)) from None
    except TypeError:  # a list or a number, which ** does not take
        raise InvalidSearch("the field search must be a JSON object") from None
    except ValueError as error:
        raise InvalidSearch(f"the field search is not valid JSON: {error}") from None
    return await request.app.state.service.image_search.answer(given)


async def _delete_image(request: Request) -> Any:
    query = request.query_params
    staged = query.get("staged", "false")
    if staged not in ("true", "false"):
        raise InvalidSearch(f"staged is {staged[:80]!r}; it must be true or false")
    return await _index(request).delete(
        _image_id(request),
        query.get("dao_id", DEFAULT_DAO_ID),
        query.get("collection"),
        staged=staged == "true",
    )


async def _update_image(request: Request) -> Any:
    try:
        given = UpdateRequest.model_validate_json(await request.body())
    except ValidationError as error:
        raise InvalidSearch(describe(error)) from None
    query = request.query_params
    return await _index(request).update(
        _image_id(request), query.get("dao_id", DEFAULT_DAO_ID), query.get("collection"), given
    )


async def _list_images(request: Request) -> Any:
    query = request.query_params
    limit = query.get("limit", "1000")
    if not limit.isdecimal() or len(limit) > 80:
        raise InvalidSearch(f"limit is {limit[:80]!r}; it must be 1 to {MAX_LISTED}")
    return await _index(request).page(
        request.path_params["name"],
        generation=query.get("generation"),
        dao_id=query.get("dao_id"),
        limit=int(limit),
        start=query.get("start"),
    )


async def _stats(request: Request) -> Any:
    return await _index(request).stats(request.path_params["name"])


async def _publish(request: Request) -> Any:
    return await _index(request).publish(request.path_params["name"])


async def _drop(request: Request) -> Any:
    parameters = request.path_params
    return await _index(request).drop(parameters["name"], parameters["generation"])


def _image_id(request: Request) -> str:
    """Return the image id in the URL. Raises `InvalidSearch` for a control character."""
    # the whole path, because the router drops a newline at its end
    if found := CONTROL.search(request.scope["path"]):
        raise InvalidSearch(
            f"the URL has the control character {found[0]!r}; an image id cannot contain it"
        )
    image_id: str = request.path_params["id"]
    return image_id


def _index(request: Request) -> Index:
    index: Index = request.app.state.service.image_search.index
    return index


HANDLERS: Final[Mapping[str, Any]] = {
    "page": _page,
    "page_file": _page_file,
    "search_upload": _search_upload,
    "thumbnail": _thumbnail,
    "update_image": _update_image,
    "delete_image": _delete_image,
    "stats": _stats,
    "list_images": _list_images,
    "publish": _publish,
    "drop": _drop,
}
"""Handlers by route name."""
