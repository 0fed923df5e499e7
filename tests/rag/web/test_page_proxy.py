"""The search page, /docs and the client through nginx, which serves them under /vision/."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import httpx
import pytest
from playwright.sync_api import Browser, expect

from router_client import VisionEncoderClient
from tests.support.page import HOST, drop, index, needs_chromium, visit_of
from tests.support.paths import ROOT
from tests.support.pictures import file_bytes, scene_image
from tests.support.serving import Server, free_port, logged, serving

NGINX: Final = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
REMOVES: Final = "proxy_pass http://vision-encoder/;"
PASSES_ON: Final = "proxy_pass http://vision-encoder;"
SETTINGS: Final = """
daemon off;
master_process off;
pid nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
"""

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx)"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a service with a picture, and tell it about its proxy."""
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, ROOT_PATH="/vision", FORWARDED_ALLOW_IPS="127.0.0.1") as server:
        index(server, "daarion_images", 0)
        yield server


@pytest.fixture(scope="module", params=[REMOVES, PASSES_ON], ids=["removes", "passes_on"])
def proxied(
    request: pytest.FixtureRequest, service: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Serve the service through nginx. The URL has a host name that the service does not know."""
    port = free_port()
    with nginx(tmp_path_factory.mktemp("nginx"), service, port, request.param):
        yield replace(service, url=f"http://{HOST}:{port}/vision")


@contextmanager
def nginx(folder: Path, service: Server, port: int, proxy_pass: str) -> Iterator[None]:
    """Run nginx with the configuration that the documentation recommends."""
    site = (ROOT / "deploy/nginx.conf").read_text()
    for old, new in {
        "127.0.0.1:8001": service.url.removeprefix("http://"),
        "listen 80;": f"listen 127.0.0.1:{port};",
        REMOVES: proxy_pass,
    }.items():
        assert site.count(old) == 1, old
        site = site.replace(old, new)
    (folder / "nginx.conf").write_text(f"{SETTINGS}{site}}}")
    assert NGINX
    process = subprocess.Popen([NGINX, "-p", folder, "-c", "nginx.conf", "-e", "error.log"])
    try:
        deadline = time.monotonic() + 10
        while not (folder / "nginx.pid").exists():
            assert process.poll() is None, (folder / "error.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)


def local(proxied: Server) -> str:
    """Return the URL for clients that cannot resolve `HOST`."""
    return proxied.url.replace(HOST, "127.0.0.1")


def test_the_page_works_under_the_path(browser: Browser, proxied: Server, tmp_path: Path) -> None:
    picture = tmp_path / "scene.png"
    picture.write_bytes(file_bytes(scene_image(1)))
    visit = visit_of(browser, proxied)
    page = visit.page
    page.goto(f"{visit.url}/")
    assert page.url == f"{visit.url}/ui"
    expect(visit.cards).to_have_count(1)
    visit.search("a red circle")
    expect(visit.cards.locator("img")).to_have_js_property("naturalWidth", 200)
    assert page.url.startswith(f"{visit.url}/ui?q=")
    visit.allowed = {404}  # the answer to the question whether the picture is already indexed
    drop(page, picture, "add")  # without a key, pages of other hosts could not do this
    with page.expect_response(f"{visit.url}/images") as added:
        page.locator("#start-add").click()
    assert added.value.json()["outcome"] == "indexed"
    page.goto(f"{visit.url}/ui/")
    expect(visit.cards).to_have_count(2)
    visit.cards.filter(has_text="scene").click()
    page.locator("#remove").click()
    page.locator("#remove-yes").click()
    expect(visit.cards).to_have_count(1)
    page.context.close()
    assert visit.wrong == []


def test_the_docs_work_under_the_path(browser: Browser, proxied: Server) -> None:
    visit = visit_of(browser, proxied)
    page = visit.page
    page.goto(f"{visit.url}/docs/")
    assert page.url == f"{visit.url}/docs"
    info = page.locator("#operations-Service-info")
    info.locator(".opblock-summary-control").click()
    info.get_by_role("button", name="Execute").click()
    answer = info.locator(".live-responses-table tbody")
    expect(answer.locator(".response-col_status")).to_have_text("200")
    expect(answer).to_contain_text("embedding_dim")
    page.context.close()
    assert visit.wrong == []


def test_the_openapi_document_names_the_path(proxied: Server) -> None:
    answer = httpx.get(f"{local(proxied)}/openapi.json")
    assert answer.json()["servers"] == [{"url": "/vision"}]
    assert answer.headers["Content-Encoding"] == "gzip"


def test_the_client_works_under_the_path(proxied: Server) -> None:
    with VisionEncoderClient(local(proxied)) as client:
        assert len(client.embed_text("a red circle")) == client.info().embedding_dim


def test_pages_of_other_hosts_are_still_rejected(proxied: Server) -> None:
    answer = httpx.post(f"{local(proxied)}/search", headers={"Origin": "https://evil.example"})
    assert (answer.status_code, answer.json()["code"]) == (403, "foreign_page")


def test_the_log_names_the_client_and_the_path_of_the_route(proxied: Server) -> None:
    headers = {"X-Forwarded-For": "203.0.113.7"}
    answer = httpx.get(f"{local(proxied)}/info", headers=headers)
    line = logged(proxied, request_id=answer.headers["X-Request-ID"])
    assert (line["client"], line["path"]) == ("203.0.113.7", "/info")
