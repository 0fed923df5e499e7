"""Keyboard, small screens and contrast on the search page."""

from __future__ import annotations

import re

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from tests.support.page import Sample, Visit, needs_chromium, visit_of
from tests.support.serving import Server

pytestmark = [pytest.mark.browser, needs_chromium]


def test_the_page_works_with_the_keyboard_alone(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    keyboard = visit.page.keyboard
    keyboard.type(samples[7].english)
    keyboard.press("Enter")
    visit.expect_first(samples[7].title)
    for _ in range(12):
        keyboard.press("Tab")
        if visit.page.evaluate("Boolean(document.activeElement.closest('#grid'))"):
            break
    expect(visit.cards.first).to_be_focused()
    keyboard.press("ArrowDown")
    keyboard.press("ArrowRight")
    columns = visit.page.evaluate(
        "getComputedStyle(document.querySelector('#grid')).gridTemplateColumns.split(' ').length"
    )
    expect(visit.cards.nth(columns + 1)).to_be_focused()
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert visit.page.evaluate(outline) == "solid"
    for key in ("Alt+ArrowLeft", "Shift+ArrowLeft", "Control+Home", "Meta+ArrowUp"):
        keyboard.press(key)
        expect(visit.cards.nth(columns + 1)).to_be_focused()
    keyboard.press("Home")
    keyboard.press("Enter")
    expect(visit.page.get_by_role("dialog", name=samples[7].title)).to_be_visible()
    keyboard.press("Escape")
    expect(visit.page.locator("#details")).to_be_hidden()
    expect(visit.cards.first).to_be_focused()


@pytest.mark.parametrize("locale", ["en-US", "uk-UA"])
def test_a_phone_with_a_dark_theme_shows_the_page_without_horizontal_scrolling(
    browser: Browser, server: Server, samples: list[Sample], locale: str
) -> None:
    visit = visit_of(
        browser,
        server,
        viewport={"width": 360, "height": 600},
        color_scheme="dark",
        reduced_motion="reduce",
        locale=locale,
    )
    page = visit.page

    def fits() -> bool:
        return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))

    visit.open()
    assert fits()
    red, green, blue = re.findall(
        r"\d+", page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    )
    assert max(int(red), int(green), int(blue)) < 40
    page.locator("#filters summary").click()
    page.set_input_files("#example", samples[5].path)
    visit.search("w" * 60)
    expect(page.locator("#mix")).to_be_visible()
    assert fits()
    visit.cards.first.click()
    assert fits()
    dialog = page.locator("#details")
    assert dialog.evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    expect(page.locator("#like-this")).to_be_in_viewport()
    assert dialog.evaluate("dialog => dialog.scrollTop") == 0
    assert dialog.evaluate("dialog => getComputedStyle(dialog).animationName") == "none"
    page.keyboard.press("Escape")
    page.set_input_files("#files", [sample.path for sample in samples[:10]])
    expect(page.locator("#add")).to_be_visible()
    assert fits()
    page.context.close()
    assert visit.wrong == []


def test_a_placeholder_has_the_contrast_of_wcag_aa(browser: Browser, server: Server) -> None:
    visit = visit_of(browser, server, color_scheme="light")
    visit.page.goto(f"{server.url}/ui")
    look = """selector => {
      const { color, backgroundColor, opacity } = getComputedStyle(
        document.querySelector(selector), selector === "[name=q]" ? "::placeholder" : null);
      return [color, backgroundColor, opacity];
    }"""
    color, _, opacity = visit.page.evaluate(look, "[name=q]")
    _, ground, _ = visit.page.evaluate(look, ".bar")
    assert opacity == "1"
    assert contrast(color, ground) >= 4.5
    visit.page.context.close()


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, `rgb(r, g, b)`, as WCAG 2 defines it."""
    values = np.array([re.findall(r"\d+", color)[:3] for color in (one, other)], float) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return float((light + 0.05) / (dark + 0.05))


def test_forced_colours_show_the_focus_and_the_chosen_language(
    browser: Browser, server: Server
) -> None:
    visit = visit_of(browser, server, forced_colors="active")
    page = visit.page
    page.goto(f"{server.url}/ui")
    for name, around in (("q", ".bar"), ("tag", "#search .field:has([name=tag])")):
        page.locator(f"#search [name={name}]").focus()
        assert page.locator(around).evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    background = "one => getComputedStyle(one).backgroundColor"
    chosen, other = (page.locator(f"[data-language={one}]") for one in ("en", "uk"))
    assert chosen.evaluate(background) != other.evaluate(background)
    page.context.close()
