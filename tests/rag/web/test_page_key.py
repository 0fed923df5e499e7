"""The search page and /docs of a service with a key, which the browser reaches by a name."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.support.bento.sockets import send, status_of
from tests.support.page import HOST, Visit, needs_chromium, reject, visit_of
from tests.support.pictures import file_bytes, scene_image
from tests.support.serving import Server, serving

KEY, OTHER = "the-k3y", "an0ther"

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve three pictures with two keys and public pages, under the name `HOST`."""
    with serving(
        tmp_path_factory.mktemp("locked"), API_KEY=f"{KEY},{OTHER}", UI_PUBLIC="true"
    ) as server:
        with server.client() as http:
            for number in range(3):
                data = base64.b64encode(file_bytes(scene_image(number))).decode()
                body = {"id": f"picture/{number}", "image_base64": data}
                headers = {"X-API-Key": KEY}
                http.post("/images", json=body, headers=headers).raise_for_status()
        port = server.url.rpartition(":")[2]
        yield Server(f"http://{HOST}:{port}", server.pid, server.log)


@pytest.fixture
def visit(browser: Browser, locked: Server) -> Iterator[Visit]:
    visit = visit_of(browser, locked)
    visit.allowed = {401}
    yield visit
    visit.page.context.close()
    assert visit.wrong == []


def lock(page: Page) -> Locator:
    return page.get_by_role("dialog", name="Key required")


def expect_pictures(pictures: Locator, count: int = 3) -> None:
    """Wait until `count` pictures are shown and loaded."""
    expect(pictures).to_have_count(count)
    for picture in pictures.all():
        expect(picture).to_have_js_property("naturalWidth", 200)


def enter(page: Page, key: str = KEY) -> None:
    """Type a key into the dialog, which has the focus."""
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.keyboard.type(key)
    page.keyboard.press("Enter")


def test_the_page_asks_for_the_key_and_uses_it(visit: Visit) -> None:
    page = visit.page
    asked: dict[str, Any] = {}
    page.on("request", lambda request: asked.setdefault(request.url, request.headers))
    page.goto(f"{visit.url}/ui")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    expect(lock(page)).to_have_accessible_description(
        "This service requires a key. Ask its operator for one."
    )
    for wrong in ("wrong", f"{KEY}x"):
        enter(page, wrong)
        expect(lock(page)).to_have_accessible_description(
            "The service did not accept this key. Try another one."
        )
        expect(page.get_by_label("Key", exact=True)).to_be_focused()
        expect(page.get_by_label("Key", exact=True)).to_have_attribute("aria-invalid", "true")
    enter(page, f" {KEY} ")
    expect(lock(page)).to_be_hidden()
    expect_pictures(visit.cards.locator("img"))
    expect(page.locator("#collection")).to_have_text("3 pictures in daarion_images")
    asked.clear()
    page.reload()  # the tab keeps the key
    expect_pictures(visit.cards.locator("img"))
    data = [url for url in asked if "/ui" not in url and url.startswith("http")]
    assert len(data) == 6  # /info, the collection, its pictures, their thumbnails
    assert all(asked[url]["authorization"] == f"Bearer {KEY}" for url in data)
    assert not any(KEY in url for url in asked)
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_searches_and_thumbnails_are_requested_with_the_key(visit: Visit) -> None:
    page = visit.page
    page.goto(f"{visit.url}/ui")
    enter(page)
    expect_pictures(visit.cards.locator("img"))
    visit.search("a red circle")
    expect_pictures(visit.cards.locator("img"))
    visit.cards.first.click()
    expect_pictures(page.locator("#details .photo img"), 1)
    page.get_by_role("button", name="More like this").click()
    expect_pictures(page.locator("#chip-picture"), 1)
    visit.allowed |= {404}
    page.route("**/thumbnail?*", reject(404))
    visit.cards.first.click()
    page.get_by_role("button", name="More like this").click()
    expect(page.locator("#chip-picture")).not_to_have_attribute("src", re.compile("."))


def test_a_request_that_is_rejected_later_is_retried_with_the_next_key(visit: Visit) -> None:
    page = visit.page
    page.goto(f"{visit.url}/ui")
    enter(page)
    expect_pictures(visit.cards.locator("img"))
    page.route("**/search", reject(401), times=1)
    page.fill("[name=q]", "a red circle")
    page.press("[name=q]", "Enter")
    expect(lock(page)).to_be_visible()
    enter(page)
    expect(lock(page)).to_be_hidden()
    expect(page.locator("#status")).to_have_text("3 pictures, best first")
    expect(page.locator("[name=q]")).to_have_value("a red circle")


def test_a_request_sent_with_the_old_key_is_retried_without_another_question(
    visit: Visit,
) -> None:
    page = visit.page
    held: list[Route] = []
    page.route(
        "**/collections/*/images?*",
        lambda route: route.continue_() if held else held.append(route),
    )
    page.route("**/collections/daarion_images", reject(401), times=1)
    page.goto(f"{visit.url}/ui")
    enter(page)
    expect(lock(page)).to_have_accessible_description(
        "The service did not accept this key. Try another one."
    )
    enter(page, OTHER)
    expect(page.locator("#collection")).to_have_text("3 pictures in daarion_images")
    reject(401)(held[0])
    expect_pictures(visit.cards.locator("img"))
    expect(lock(page)).to_be_hidden()


def test_a_user_without_a_key_is_told_and_can_try_again(visit: Visit) -> None:
    page = visit.page
    page.goto(f"{visit.url}/ui")
    enter(page, "два слова")  # a header cannot contain these characters
    expect(lock(page)).to_be_visible()
    page.keyboard.press("Escape")
    expect(lock(page)).to_be_hidden()
    alert = page.locator("main").get_by_role("alert")
    expect(alert).to_contain_text("This service requires a key")
    alert.get_by_role("button", name="Try again").click()
    lock(page).get_by_role("button", name="Cancel").click()
    expect(lock(page)).to_be_hidden()
    alert.get_by_role("button", name="Try again").click()
    enter(page)
    expect_pictures(visit.cards.locator("img"))


def test_public_pages_expose_nothing_else(locked: Server) -> None:
    here = replace(locked, url=locked.url.replace(HOST, "127.0.0.1"))
    for path in ("/ui/style.css", "/docs/start.js", "/static_content/swagger-ui.css"):
        folder = path.rpartition("/")[0]
        for way in ("../info", "..%2Finfo", "%2e%2e/info", "/info", "..//info", "./../info"):
            with send(here, f"GET {folder}/{way} HTTP/1.1") as connection:
                assert status_of(connection) in (400, 404), f"{folder}/{way}"
        with send(here, f"GET {path} HTTP/1.1") as connection:
            assert status_of(connection) == 200


def test_the_docs_work_under_their_policy_and_with_a_key(visit: Visit) -> None:
    page = visit.page
    page.goto(f"{visit.url}/docs")
    page.get_by_role("button", name="Authorize").click()
    page.get_by_label("auth-bearer-value").fill(KEY)
    page.get_by_label("Apply credentials").first.click()
    page.get_by_role("button", name="Close").first.click()
    info = page.locator("#operations-Service-info")
    info.locator(".opblock-summary-control").click()
    info.get_by_role("button", name="Execute").click()
    answer = info.locator(".live-responses-table tbody")
    expect(answer.locator(".response-col_status")).to_have_text("200")
    expect(answer).to_contain_text("embedding_dim")
