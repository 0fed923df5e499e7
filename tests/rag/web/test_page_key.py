"""The pages of a service with a key, in a real browser that reaches it by a name."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from tests.support.bento.sockets import send, status_of
from tests.support.page import CHROMIUM, Visit, needs_chromium, refuse, visit_of
from tests.support.pictures import file_bytes, scene_image
from tests.support.serving import Server, serving

KEY, OTHER = "the-k3y", "an0ther"
NAME = "encoder.example"

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with a key, public pages and three pictures, by a name that is not this host's."""
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
        yield Server(f"http://{NAME}:{port}", server.pid, server.log)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=10_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[f"--host-resolver-rules=MAP {NAME} 127.0.0.1"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser, locked: Server) -> Iterator[Visit]:
    visit = visit_of(chromium, locked)
    visit.allowed = {401}
    yield visit
    visit.page.context.close()
    assert visit.wrong == []  # violations of the policy, requests to other hosts, errors


def lock(page: Page) -> Locator:
    return page.get_by_role("dialog", name="A key is needed")


def expect_pictures(pictures: Locator, count: int = 3) -> None:
    """Wait until so many pictures are shown and loaded."""
    expect(pictures).to_have_count(count)
    for picture in pictures.all():
        expect(picture).to_have_js_property("naturalWidth", 200)


def enter(page: Page, key: str = KEY) -> None:
    """Give a key to the dialog that asks for one, which has the focus."""
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.keyboard.type(key)
    page.keyboard.press("Enter")


def test_the_page_asks_for_the_key_and_shows_pictures_with_it(visit: Visit) -> None:
    page = visit.page
    asked: dict[str, Any] = {}
    page.on("request", lambda request: asked.setdefault(request.url, request.headers))
    page.goto(f"{visit.url}/ui")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()  # nothing but the keyboard is used
    expect(lock(page)).to_have_accessible_description(
        "This service answers only to those who have a key. Ask its operator for one."
    )
    for wrong in ("wrong", f"{KEY}x"):
        enter(page, wrong)
        expect(lock(page)).to_have_accessible_description(
            "That key was not accepted. Try another one."
        )
        expect(page.get_by_label("Key", exact=True)).to_be_focused()
        expect(page.get_by_label("Key", exact=True)).to_have_attribute("aria-invalid", "true")
    enter(page, f" {KEY} ")
    expect(lock(page)).to_be_hidden()
    expect_pictures(visit.cards.locator("img"))
    expect(page.locator("#collection")).to_have_text("3 pictures in daarion_images")
    asked.clear()
    page.reload()  # it is kept as long as the tab
    expect_pictures(visit.cards.locator("img"))
    data = [url for url in asked if "/ui" not in url and url.startswith("http")]
    assert len(data) == 6  # /info, the collection, its pictures, their thumbnails
    assert all(asked[url]["authorization"] == f"Bearer {KEY}" for url in data)
    assert not any(KEY in url for url in asked)
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_a_search_and_its_pictures_are_asked_for_with_the_key(visit: Visit) -> None:
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
    page.route("**/thumbnail?*", refuse(404, "there is no thumbnail"))
    visit.cards.first.click()
    page.get_by_role("button", name="More like this").click()
    expect(page.locator("#chip-picture")).not_to_have_attribute("src", re.compile("."))


def test_what_is_refused_later_is_asked_again_with_another_key(visit: Visit) -> None:
    page = visit.page
    page.goto(f"{visit.url}/ui")
    enter(page)
    expect_pictures(visit.cards.locator("img"))
    page.route("**/search", refuse(401, "another key is needed"), times=1)
    page.fill("[name=q]", "a red circle")
    page.press("[name=q]", "Enter")
    expect(lock(page)).to_be_visible()
    enter(page)
    expect(lock(page)).to_be_hidden()
    expect(page.locator("#status")).to_have_text("3 pictures, best first")
    expect(page.locator("[name=q]")).to_have_value("a red circle")


def test_what_was_under_way_with_the_old_key_is_asked_again_without_a_question(
    visit: Visit,
) -> None:
    page = visit.page
    held: list[Route] = []
    page.route(
        "**/collections/*/images?*",
        lambda route: route.continue_() if held else held.append(route),
    )
    page.route("**/collections/daarion_images", refuse(401, "no longer"), times=1)
    page.goto(f"{visit.url}/ui")
    enter(page)
    expect(lock(page)).to_have_accessible_description("That key was not accepted. Try another one.")
    enter(page, OTHER)
    expect(page.locator("#collection")).to_have_text("3 pictures in daarion_images")
    refuse(401, "no longer")(held[0])
    expect_pictures(visit.cards.locator("img"))
    expect(lock(page)).to_be_hidden()


def test_who_has_no_key_is_told_and_may_try_again(visit: Visit) -> None:
    page = visit.page
    page.goto(f"{visit.url}/ui")
    enter(page, "два слова")  # what no header can carry is not sent
    expect(lock(page)).to_be_visible()
    page.keyboard.press("Escape")
    expect(lock(page)).to_be_hidden()
    alert = page.locator("main").get_by_role("alert")
    expect(alert).to_contain_text("This service answers only to those who have a key")
    alert.get_by_role("button", name="Try again").click()
    lock(page).get_by_role("button", name="Cancel").click()
    expect(lock(page)).to_be_hidden()
    alert.get_by_role("button", name="Try again").click()
    enter(page)
    expect_pictures(visit.cards.locator("img"))


def test_nothing_else_is_behind_what_is_public(locked: Server) -> None:
    here = replace(locked, url=locked.url.replace(NAME, "127.0.0.1"))
    for path in ("/ui/style.css", "/docs/start.js", "/static_content/swagger-ui.css"):
        folder = path.rpartition("/")[0]
        for way in ("../info", "..%2Finfo", "%2e%2e/info", "/info", "..//info", "./../info"):
            with send(here, f"GET {folder}/{way} HTTP/1.1") as connection:
                assert status_of(connection) in (400, 404), f"{folder}/{way}"
        with send(here, f"GET {path} HTTP/1.1") as connection:
            assert status_of(connection) == 200


def test_the_docs_work_under_their_policy_and_with_the_key(visit: Visit) -> None:
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
