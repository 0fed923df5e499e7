"""One picture on the search page: its details, its removal, a missing thumbnail."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.support.page import Sample, Visit, index, listed, needs_chromium, reject
from tests.support.serving import Server

pytestmark = [pytest.mark.browser, needs_chromium]


def test_a_payload_is_shown_as_text_never_as_html(visit: Visit, server: Server) -> None:
    evil = "<img src=nowhere onerror='window.wrong = true'>"
    metadata = {"title": f"title {evil}", "tags": [evil], "note": evil, "more": {"deep": [evil]}}
    index(server, "page_evil", 1, metadata=metadata, image_path=f"/{evil}")
    visit.open("page_evil", "&q=a+circle")
    expect(visit.cards).to_have_count(1)
    visit.cards.first.click()
    details = visit.page.locator("#details")
    expect(details.locator("h2")).to_have_text(f"title {evil}")
    expect(details.locator("tr", has_text="note").locator("td")).to_have_text(evil)
    expect(details.locator("tr", has_text="more").locator("td")).to_contain_text(evil)
    expect(details.locator("tr", has_text="Score")).to_be_visible()
    expect(details.locator("tr", has_text="picture/1")).to_be_visible()
    assert visit.page.locator("[src=nowhere]").count() == 0
    assert visit.page.evaluate("window.wrong") is None


def test_a_title_cannot_change_the_direction_of_other_text(visit: Visit, server: Server) -> None:
    index(server, "page_bidi", 1, metadata={"title": "\u202egnp.\u2066exe"})
    visit.open("page_bidi", "&q=a+circle")
    visit.cards.first.click()
    title = visit.page.locator("#details h2")
    expect(title).to_have_text("gnp.exe")
    assert title.evaluate("title => title.textContent") == "gnp.exe"


@pytest.mark.parametrize("width", [1280, 360])
def test_the_dialog_of_a_long_payload_opens_at_its_top(
    visit: Visit, server: Server, width: int
) -> None:
    index(server, "page_long", 1, metadata={f"field {number}": number for number in range(60)})
    visit.page.set_viewport_size({"width": width, "height": 600})
    visit.open("page_long")
    visit.cards.first.click()
    expect(visit.page.locator("#details-title")).to_be_focused()
    details = visit.page.locator("#details")
    assert details.evaluate("dialog => dialog.scrollTop") == 0
    expect(details.locator(".photo img")).to_be_in_viewport(ratio=0.9)
    close = details.get_by_role("button", name="Close")
    for _ in range(2):  # at the top, then at the bottom
        place, around = close.bounding_box(), details.bounding_box()
        assert place
        assert around
        assert 0 <= place["y"] - around["y"] <= 16
        assert 0 <= around["x"] + around["width"] - place["x"] - place["width"] <= 32
        assert details.evaluate("dialog => (dialog.scrollTop = 9999, dialog.scrollTop)") > 500
    close.click()
    expect(details).to_be_hidden()


def test_a_picture_is_removed_after_a_question(visit: Visit, server: Server) -> None:
    for number in range(3):
        index(server, "page_remove", number, metadata={"title": f"no. {number}"})
    visit.open("page_remove", "&q=a+circle")
    last = visit.titles[2]
    visit.cards.nth(2).click()
    remove = visit.page.get_by_role("button", name="Remove", exact=True)
    remove.click()
    expect(visit.page.get_by_role("button", name="Keep it")).to_be_focused()
    visit.page.keyboard.press("Enter")
    expect(remove).to_be_focused()
    assert len(listed(server, "page_remove")) == 3
    remove.click()
    visit.page.get_by_role("button", name="Remove it").click()
    expect(visit.cards).to_have_count(2)
    assert last not in visit.titles
    expect(visit.cards.nth(1)).to_be_focused()
    expect(visit.page.locator("#status")).to_have_text(f"Removed: {last}")
    assert {image["payload"]["title"] for image in listed(server, "page_remove")} == set(
        visit.titles
    )


def test_the_page_tells_how_to_add_pictures_when_the_last_one_is_removed(
    visit: Visit, server: Server
) -> None:
    for number, query in enumerate(("", "&q=a+circle")):
        index(server, "page_last", number, metadata={"title": f"no. {number}"})
        visit.open("page_last", query)
        visit.cards.first.click()
        visit.page.get_by_role("button", name="Remove", exact=True).click()
        visit.page.get_by_role("button", name="Remove it").click()
        expect(visit.page.locator("#empty")).to_be_visible()
        expect(visit.page.locator("#status")).to_have_text(f"Removed: no. {number}")
        expect(visit.page.locator("[name=q]")).to_be_focused()


def test_the_next_pictures_appear_when_all_visible_ones_are_removed(
    visit: Visit, server: Server
) -> None:
    for number in range(2):
        index(server, "page_next", number, metadata={"title": f"no. {number}"})
    visit.page.route(
        "**/images?limit=24", lambda route: route.continue_(url=route.request.url[:-2] + "1")
    )
    visit.open("page_next")
    visit.cards.first.click()
    (gone,) = visit.titles
    visit.page.get_by_role("button", name="Remove", exact=True).click()
    visit.page.get_by_role("button", name="Remove it").click()
    expect(visit.page.locator("#status")).to_have_text(f"Removed: {gone}")
    expect(visit.cards).to_have_count(1)
    assert visit.titles != [gone]


def test_the_dialog_shows_why_a_removal_failed(visit: Visit, samples: list[Sample]) -> None:
    visit.allowed = {503}
    visit.open()
    visit.cards.first.click()
    visit.page.route("**/images/*?*", reject(503, "some sentence"))
    visit.page.get_by_role("button", name="Remove", exact=True).click()
    visit.page.get_by_role("button", name="Remove it").click()
    expect(visit.page.locator("#details").get_by_role("alert")).to_have_text("some sentence")
    expect(visit.page.locator("#details")).to_be_visible()


def test_a_picture_without_thumbnail_has_a_tile_with_its_title(
    visit: Visit, samples: list[Sample]
) -> None:
    visit.allowed = {404}
    visit.page.route("**/thumbnail?*", reject(404))
    visit.open(query="&q=a+circle")
    expect(visit.page.locator("#grid .missing").first).to_have_text(visit.titles[0])
