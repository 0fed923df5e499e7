"""The path of a reverse proxy, relative redirects, and compressed answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final
from urllib.parse import urljoin

import httpx
import pytest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from bento import Settings
from bento.contract.errors import describe
from bento.web.connections.proxy import Compression, RootPath

SITE: Final = "http://pictures.example"


async def echo(request: Request) -> Response:
    return PlainTextResponse(request.url.path)


async def home(_: Request) -> Response:
    return RedirectResponse("/ui")


APP: Final = Starlette(
    routes=[
        Route("/", home),
        Route("/ui", echo),
        Route("/livez", echo),
        Route("/a/{id:path}/b", echo),
    ]
)


def get(app: ASGIApp, path: str, **headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=SITE) as http:
            return await http.get(
                path, headers={name.replace("_", "-"): value for name, value in headers.items()}
            )

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("root_path", "path", "found"),
    [
        ("", "/ui", "/ui"),
        ("", "/vision/ui", None),
        ("/vision", "/ui", "/ui"),
        ("/vision", "/vision/ui", "/ui"),
        ("/vision", "/vision/livez", "/livez"),
        ("/vision", "/visionary/ui", None),
        ("/vision", "/vision/vision/ui", None),
        ("/vision", "/other/vision/ui", None),
        ("/vision", "/VISION/ui", None),
        ("/a.b/c", "/a.b/c/ui", "/ui"),
        ("/a.b/c", "/axb/c/ui", None),
    ],
)
def test_the_root_path_is_removed_once_from_the_beginning(
    root_path: str, path: str, found: str | None
) -> None:
    answer = get(RootPath(APP, root_path=root_path), path)
    assert (answer.text if answer.status_code == 200 else None) == found


@pytest.mark.parametrize("removes", [True, False])
@pytest.mark.parametrize(
    ("path", "leads_to"),
    [
        ("", "/ui"),
        ("/", "/ui"),
        ("/ui/", "/ui"),
        ("/ui/?q=a%26b", "/ui?q=a%26b"),
        ("/a/x/y/b/", "/a/x/y/b"),
        ("/a/x%2Fy/b/", "/a/x/y/b"),
        ("/a/https:x/b/", "/a/https:x/b"),
    ],
)
def test_redirects_stay_on_the_host_and_under_the_path_that_the_client_sees(
    path: str, leads_to: str, removes: bool
) -> None:
    if removes and not path:
        return  # the proxy itself redirects to /vision/
    app = RootPath(APP, root_path="" if removes else "/vision")
    answer = get(app, path if removes else f"/vision{path}")
    assert answer.status_code == 307
    found = urljoin(f"https://public.example/vision{path}", answer.headers["Location"])
    assert found == f"https://public.example/vision{leads_to}"


@pytest.mark.parametrize(
    "given", ["/..", "/a/./b", "vision", "/a b", "//vision", "/vision?", "http://a/vision", "/ü"]
)
def test_an_invalid_root_path_is_rejected_at_start(given: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(root_path=given)
    assert f"ROOT_PATH={given}: must be a path such as /vision" in describe(caught.value)


@pytest.mark.parametrize("given", ["/search", "/ui", "/images/of/ours", "/docs/"])
def test_a_root_path_that_could_be_a_route_is_rejected_at_start(given: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(root_path=given)
    assert "must not begin like a route of the service" in describe(caught.value)


def test_a_final_slash_of_the_root_path_is_dropped() -> None:
    assert Settings(root_path="/vision/").root_path == "/vision"
    assert Settings(root_path="/").root_path == ""


@pytest.mark.parametrize(
    "given", ["proxy", "10.0.0.1/8", "10.0.0.1, 10.0.0.2", "10.0.0.1,", "*,::1"]
)
def test_an_invalid_proxy_is_rejected_at_start(given: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(forwarded_allow_ips=given)
    assert f"FORWARDED_ALLOW_IPS={given}: must be * or a comma" in describe(caught.value)


@pytest.mark.parametrize("given", ["", "*", "127.0.0.1", "::1,10.0.0.0/8"])
def test_addresses_and_networks_of_proxies_are_accepted(given: str) -> None:
    assert Settings(forwarded_allow_ips=given).forwarded_allow_ips == given


def answering(size: int, media_type: str) -> Callable[[Request], Response]:
    return lambda _: Response(b"x" * size, media_type=media_type)


@pytest.mark.parametrize(
    ("path", "size", "media_type", "compressed"),
    [
        ("/search", 1024, "application/json", True),
        ("/search", 1_000_000, "application/json", True),
        ("/search", 1023, "application/json", False),
        ("/ui", 2000, "text/html", True),
        ("/images/a/thumbnail", 2000, "image/jpeg", False),
        ("/embed/texts", 2000, "application/json", False),
        ("/embed/text", 2000, "application/x-npy", False),
        ("/v1/embeddings", 2000, "application/json", False),
    ],
)
def test_answers_of_1_kib_are_compressed_except_embeddings_and_pictures(
    path: str, size: int, media_type: str, compressed: bool
) -> None:
    app = Compression(Starlette(routes=[Route(path, answering(size, media_type))]))
    answer = get(app, path, Accept_Encoding="gzip, br")
    assert answer.headers.get("Content-Encoding") == ("gzip" if compressed else None)
    assert (int(answer.headers["Content-Length"]) < size) == compressed
    assert answer.content == b"x" * size
    plain = get(app, path, Accept_Encoding="br")
    assert "Content-Encoding" not in plain.headers
    assert plain.content == answer.content
