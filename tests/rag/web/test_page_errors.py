"""Errors, a busy service and empty collections on the search page."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Route, expect

from tests.support.page import COLLECTION, SCENES, Sample, Visit, index, needs_chromium, reject
from tests.support.serving import Server

pytestmark = [pytest.mark.browser, needs_chromium]


def test_an_error_is_shown_until_a_retry_succeeds(visit: Visit, samples: list[Sample]) -> None:
    visit.allowed = {503}
    visit.open()
    visit.page.route("**/search", reject(503, "a sentence with <b>HTML</b>"))
    visit.search("a circle")
    alert = visit.page.locator("main").get_by_role("alert")
    expect(alert).to_contain_text("a sentence with <b>HTML</b>")
    expect(visit.cards).to_have_count(0)
    again = alert.get_by_role("button", name="Try again")
    with visit.page.expect_response("**/search"):
        again.click()
    visit.page.wait_for_selector("main[aria-busy=false]")
    expect(again).to_be_focused()
    visit.page.unroute("**/search")
    again.click()
    expect(visit.cards).to_have_count(24)
    expect(alert).to_be_hidden()
    expect(visit.page.locator("[name=q]")).to_be_focused()


def test_an_error_of_show_more_is_shown_below_the_grid(visit: Visit, samples: list[Sample]) -> None:
    visit.allowed = {503}
    visit.open(query="&q=a+heart")
    visit.page.route("**/search", reject(503))
    visit.page.get_by_role("button", name="Show more").click()
    alert = visit.page.locator("main").get_by_role("alert")
    expect(alert.locator("div")).to_be_in_viewport()
    expect(alert.get_by_role("button", name="Try again")).to_be_focused()
    visit.page.unroute("**/search")
    visit.page.keyboard.press("Enter")
    expect(visit.cards).to_have_count(48)
    expect(visit.cards.nth(24)).to_be_focused()
    expect(alert).to_be_hidden()
    visit.page.route("**/search", reject(503))
    visit.search("a circle")
    expect(visit.page.locator("#alert + #grid")).to_be_attached()


def test_the_number_of_pictures_is_shown_after_a_retry(visit: Visit, samples: list[Sample]) -> None:
    visit.allowed = {503}
    visit.page.route("**/collections/**", reject(503))
    visit.open()
    expect(visit.page.locator("#collection")).to_have_text(COLLECTION)
    visit.page.unroute("**/collections/**")
    visit.page.get_by_role("button", name="Try again").click()
    expect(visit.cards).to_have_count(24)
    expect(visit.page.locator("#collection")).to_have_text(f"{SCENES} pictures in {COLLECTION}")


def test_a_service_that_is_unreachable_at_the_start_is_reported_in_the_chosen_language(
    visit: Visit, samples: list[Sample]
) -> None:
    visit.page.route("**/info", lambda route: route.abort())
    visit.open()
    alert = visit.page.locator("main").get_by_role("alert")
    expect(alert).to_contain_text("The service does not answer")
    visit.page.get_by_role("button", name="Українська").click()
    expect(alert).to_contain_text("Сервіс не відповідає")
    visit.page.unroute("**/info")
    alert.get_by_role("button", name="Спробувати ще раз").click()
    expect(visit.cards).to_have_count(24)
    expect(alert).to_be_hidden()


def test_a_service_that_is_unreachable_is_reported(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    visit.page.route("**/search", lambda route: route.abort())
    visit.search("a circle")
    expect(visit.page.locator("#alert")).to_contain_text("The service does not answer")


def test_a_busy_service_is_asked_again_after_retry_after(
    visit: Visit, samples: list[Sample]
) -> None:
    visit.allowed = {429}
    visit.open()
    visit.page.route("**/search", reject(429, **{"Retry-After": "1"}), times=1)
    visit.page.fill("[name=q]", samples[7].english)
    expect(visit.page.locator("#status")).to_have_text("The service is busy. Retrying in 1 second")
    visit.expect_first(samples[7].title)


def test_a_service_that_stays_busy_is_asked_four_times(visit: Visit, samples: list[Sample]) -> None:
    visit.allowed = {429}
    visit.open()
    asked = []

    def stay_busy(route: Route) -> None:
        asked.append(route)
        reject(429, code="busy", **{"Retry-After": "0.05"})(route)

    visit.page.route("**/search", stay_busy)
    visit.search("a circle")
    expect(visit.page.locator("#alert")).to_contain_text("The service is busy. Try again")
    assert len(asked) == 4


def test_a_page_without_search_tells_how_to_turn_it_on(visit: Visit, server: Server) -> None:
    off = httpx.get(f"{server.url}/info").json() | {"qdrant_enabled": False, "collection": None}
    visit.page.route("**/info", lambda route: route.fulfill(json=off))
    visit.page.goto(f"{server.url}/ui")
    expect(visit.page.locator("#off")).to_contain_text("QDRANT_ENABLED=true")
    expect(visit.page.get_by_role("search")).to_be_hidden()
    expect(visit.page.get_by_role("button", name="Add pictures")).to_be_hidden()
    visit.page.get_by_role("button", name="Українська").click()
    expect(visit.page.locator("#off")).to_contain_text("Пошук вимкнено")


def test_the_page_of_an_empty_collection_tells_how_to_add_pictures(
    visit: Visit, server: Server
) -> None:
    index(server, "page_emptied", 0)
    with server.client() as client:
        client.delete("/images/picture%2F0?collection=page_emptied").raise_for_status()
    visit.page.goto(f"{server.url}/ui?collection=page_emptied")
    expect(visit.page.locator("#empty")).to_contain_text("vision-rag index FOLDER")
    visit.search("a circle")
    expect(visit.page.locator("#empty")).to_be_visible()


def test_a_search_without_results_is_reported(visit: Visit, samples: list[Sample]) -> None:
    visit.open(query="&q=a+circle&tag=unused")
    expect(visit.page.locator("#status")).to_contain_text("Nothing found")
    expect(visit.page.locator("#empty")).to_be_hidden()
