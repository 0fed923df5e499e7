"""Searching on the search page: text, pictures, filters, paging, history."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Request, Route, expect

from tests.support.page import (
    COLLECTION,
    SCENES,
    Sample,
    Visit,
    drop,
    index,
    needs_chromium,
    transfer,
    visit_of,
)
from tests.support.serving import Server

pytestmark = [pytest.mark.browser, needs_chromium]


def text_of(request: Request) -> Any:
    """Return the text in the body of a search."""
    return json.loads(request.post_data or "{}").get("text")


def test_the_page_starts_with_pictures_of_the_collection(
    visit: Visit, samples: list[Sample]
) -> None:
    visit.open()
    expect(visit.cards).to_have_count(24)
    expect(visit.page.locator("#collection")).to_have_text(f"{SCENES} pictures in {COLLECTION}")
    expect(visit.page.locator("#grid .score")).to_have_count(0)
    expect(visit.page.locator("[name=q]")).to_be_focused()


def test_typing_starts_a_search(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    visit.page.locator("[name=q]").press_sequentially(samples[7].english)
    visit.expect_first(samples[7].title)
    expect(visit.page.locator("#status")).to_have_text("24 pictures, best first")
    expect(visit.cards.first.locator(".score")).to_have_text(re.compile(r"^0\.\d{3}$"))
    expect(visit.cards.first.locator("img")).to_have_js_property("naturalWidth", 160)


def test_captions_find_their_pictures(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    right = 0
    wanted = samples[::2]
    for number, sample in enumerate(wanted):
        visit.search(sample.english if number % 2 else sample.ukrainian)
        right += visit.titles[0] == sample.title
    assert right / len(wanted) >= 0.90


def test_a_dropped_picture_is_searched_by(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    drop(visit.page, samples[3].path, "search")
    visit.expect_first(samples[3].title)
    expect(visit.cards.first.locator(".score")).to_have_text("1.000")
    expect(visit.page.locator("#chip")).to_contain_text(f"Similar to {samples[3].path.name}")
    expect(visit.page.locator("#drop")).to_be_hidden()


def test_a_pasted_picture_is_searched_by(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    visit.page.evaluate("scrollTo(0, 9999)")
    visit.page.evaluate(
        """(clipboardData) => document.activeElement.dispatchEvent(
          new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }))""",
        transfer(visit.page, samples[4].path),
    )
    visit.expect_first(samples[4].title)
    assert visit.page.evaluate("scrollY") == 0


def test_the_slider_weights_the_text_and_the_picture(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    visit.page.set_input_files("#example", samples[5].path)
    expect(visit.page.locator("#mix")).to_be_hidden()
    visit.search(samples[9].english)
    slider = visit.page.get_by_label("Weight of the picture")
    slider.press("End")
    visit.expect_first(samples[5].title)
    slider.press("Home")
    visit.expect_first(samples[9].title)
    visit.page.get_by_label("Search without this picture").click()
    expect(visit.page.locator("#chip")).to_be_hidden()
    visit.expect_first(samples[9].title)
    expect(visit.page.locator("[name=q]")).to_be_focused()


def test_a_text_in_without_lowers_its_pictures(visit: Visit, samples: list[Sample]) -> None:
    visit.open(query="&q=a+circle")
    first = next(sample for sample in samples if sample.title == visit.titles[0])
    visit.page.get_by_label("Without", exact=True).fill(first.english)
    expect(visit.cards.first.locator("img")).not_to_have_attribute("alt", first.title)


def test_more_like_this_searches_within_the_tenant_of_the_picture(
    visit: Visit, server: Server
) -> None:
    for number in range(4):
        index(server, "page_likes", number, dao_id="museum", metadata={"title": f"no. {number}"})
    visit.open("page_likes", "&q=a+red+circle")
    title = visit.titles[1]
    visit.cards.nth(1).click()
    visit.page.get_by_role("button", name="More like this").click()
    expect(visit.cards).to_have_count(3)
    assert title not in visit.titles
    expect(visit.page.locator("#chip-title")).to_have_text(title)
    expect(visit.page.locator("[name=q]")).to_be_focused()
    assert "like_dao_id=museum" in visit.page.url
    visit.page.go_back()
    expect(visit.cards).to_have_count(4)
    expect(visit.page.locator("#chip")).to_be_hidden()


def test_pictures_of_two_tenants_with_the_same_id_are_told_apart(
    visit: Visit, server: Server
) -> None:
    for number, tenant in enumerate(("museum", "archive")):
        index(server, "page_same", number, id="same", dao_id=tenant, metadata={"title": tenant})
    visit.open("page_same")
    for tenant in ("museum", "archive"):
        visit.cards.filter(has_text=tenant).click()
        visit.page.get_by_role("button", name="More like this").click()
        expect(visit.page.locator("#chip-title")).to_have_text(tenant)
        expect(visit.page.locator("#chip-picture")).to_have_attribute("src", re.compile(tenant))
        visit.page.get_by_label("Search without this picture").click()


def test_show_more_appends_search_results(visit: Visit, samples: list[Sample]) -> None:
    visit.open(query="&q=a+heart")
    more = visit.page.get_by_role("button", name="Show more")
    for count in (48, SCENES):
        seen = len(visit.titles)
        more.click()
        expect(visit.cards).to_have_count(count)
        expect(visit.cards.nth(seen)).to_be_focused()
    expect(more).to_be_hidden()
    assert len(set(visit.titles)) == SCENES
    expect(visit.page.locator("#status")).to_have_text(f"{SCENES} pictures so far")


def test_show_more_appends_pictures_of_the_collection(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    for count in (48, SCENES):
        visit.page.get_by_role("button", name="Show more").click()
        expect(visit.cards).to_have_count(count)
    assert set(visit.titles) == {sample.title for sample in samples}


def test_show_more_right_after_typing_runs_the_new_search(
    visit: Visit, samples: list[Sample]
) -> None:
    visit.open()
    visit.page.evaluate(
        """(text) => {
          const q = document.querySelector("[name=q]");
          q.value = text;
          q.dispatchEvent(new Event("input", { bubbles: true }));
          document.querySelector("#more").click();
        }""",
        samples[7].english,
    )
    visit.expect_first(samples[7].title)
    expect(visit.cards).to_have_count(24)


def test_a_new_search_aborts_the_old_one(visit: Visit, samples: list[Sample]) -> None:
    visit.open()

    def hold_slow(route: Route) -> None:
        if text_of(route.request) != "slow":
            route.continue_()

    visit.page.route("**/search", hold_slow)
    visit.page.fill("[name=q]", "slow")
    visit.page.press("[name=q]", "Enter")
    with visit.page.expect_event("requestfailed") as failed:
        visit.search(samples[7].english)
    assert text_of(failed.value) == "slow"
    visit.expect_first(samples[7].title)


def test_results_are_labelled_by_their_request_not_by_the_form(
    visit: Visit, samples: list[Sample]
) -> None:
    held: list[Route] = []
    visit.page.route("**/images?*", lambda route: held.append(route))
    with visit.page.expect_request("**/images?*"):
        visit.page.goto(f"{visit.url}/ui?collection={COLLECTION}")
    # change the text, but do not start its search
    visit.page.eval_on_selector("[name=q]", "input => { input.value = 'a heart'; }")
    held[0].continue_()
    expect(visit.cards).to_have_count(24)
    expect(visit.page.locator("#status")).to_have_text("From this collection")
    expect(visit.page.locator("#grid .score")).to_have_count(0)


def test_text_typed_before_the_service_answers_is_searched_for(
    visit: Visit, samples: list[Sample]
) -> None:
    held: list[Route] = []
    visit.page.route("**/info", lambda route: held.append(route))
    with visit.page.expect_request("**/info"):
        visit.page.goto(f"{visit.url}/ui?collection={COLLECTION}&tag=unused")
    visit.page.locator("#search [name=tag]").fill("")
    visit.page.locator("[name=q]").press_sequentially(samples[7].english)
    held[0].continue_()
    visit.expect_first(samples[7].title)
    expect(visit.page.locator("[name=q]")).to_have_value(samples[7].english)


def test_text_typed_before_the_script_has_loaded_is_searched_for(
    visit: Visit, samples: list[Sample]
) -> None:
    held: list[Route] = []
    visit.page.route("**/texts.js", lambda route: held.append(route))
    with visit.page.expect_request("**/texts.js"):
        query = f"collection={COLLECTION}&q=a+heart&dao_id=default"
        visit.page.goto(f"{visit.url}/ui?{query}", wait_until="commit")
    visit.page.fill("[name=q]", samples[7].english)
    held[0].continue_()
    visit.expect_first(samples[7].title)
    expect(visit.page.locator("#search [name=dao_id]")).to_have_value("default")


def test_a_picture_dropped_before_the_service_answers_is_searched_by(
    visit: Visit, samples: list[Sample]
) -> None:
    held: list[Route] = []
    visit.page.route("**/info", lambda route: held.append(route))
    with visit.page.expect_request("**/info"):
        visit.page.goto(f"{visit.url}/ui?collection={COLLECTION}")
    drop(visit.page, samples[3].path, "search")
    held[0].continue_()
    visit.expect_first(samples[3].title)
    expect(visit.page.locator("#chip-title")).to_have_text(samples[3].path.name)


def test_filters_select_a_tenant_and_a_tag(visit: Visit, server: Server) -> None:
    for number in range(6):
        index(
            server,
            "page_filters",
            number,
            dao_id="museum" if number < 2 else "archive",
            metadata={"title": f"no. {number}", "tags": ["old"] if number % 2 else ["new"]},
        )
    visit.open("page_filters")
    expect(visit.cards).to_have_count(6)
    visit.page.get_by_label("Tenant").first.fill("museum")
    expect(visit.cards).to_have_count(2)
    assert set(visit.titles) == {"no. 0", "no. 1"}
    visit.page.locator("#search [name=tag]").fill("old")
    expect(visit.cards).to_have_count(1)
    assert visit.titles == ["no. 1"]
    visit.search("a red circle")
    assert visit.titles == ["no. 1"]
    visit.page.locator("#search [name=dao_id]").fill("")
    expect(visit.cards).to_have_count(3)
    visit.page.locator("#search [name=tag]").fill("")
    expect(visit.cards).to_have_count(6)
    visit.page.set_viewport_size({"width": 400, "height": 400})
    visit.cards.filter(has_text="no. 2").click()
    visit.page.evaluate("scrollTo(0, 9999)")
    visit.page.locator("#details .tags").get_by_role("button", name="new").click()
    expect(visit.cards).to_have_count(3)
    assert visit.page.evaluate("scrollY") == 0
    expect(visit.page.locator("[name=q]")).to_be_focused()
    assert set(visit.titles) == {"no. 0", "no. 2", "no. 4"}


def test_the_address_contains_the_search_and_back_returns_to_the_last_one(
    visit: Visit, samples: list[Sample], browser: Browser, server: Server
) -> None:
    visit.open()
    start = visit.titles
    for text in ("small", samples[7].english):  # with a pause between them
        with visit.page.expect_response("**/search"):
            visit.page.fill("[name=q]", text)
    visit.expect_first(samples[7].title)
    shared = visit_of(browser, server)
    shared.page.goto(visit.page.url)
    shared.expect_first(samples[7].title)
    expect(shared.page.locator("[name=q]")).to_have_value(samples[7].english)
    shared.page.context.close()
    assert shared.wrong == []
    visit.page.go_back()
    expect(visit.page.locator("[name=q]")).to_have_value("")
    expect(visit.page.locator("#grid .title")).to_have_text(start)
    visit.page.go_forward()
    visit.expect_first(samples[7].title)


def test_back_returns_to_a_search_by_a_file(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    visit.page.set_input_files("#example", samples[3].path)
    visit.expect_first(samples[3].title)
    visit.page.get_by_label("Search without this picture").click()
    expect(visit.page.locator("#status")).to_have_text("From this collection")
    visit.page.go_back()
    visit.expect_first(samples[3].title)
    expect(visit.page.locator("#chip")).to_be_visible()
