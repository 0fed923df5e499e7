"""The languages of the search page: texts, errors, and models that know English only."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from bento.contract.errors import ServiceError
from tests.support.page import (
    COLLECTION,
    SCENES,
    Sample,
    Visit,
    drop,
    needs_chromium,
    reject,
    visit_of,
)
from tests.support.serving import Server

pytestmark = [pytest.mark.browser, needs_chromium]

# Codes of errors that no action of the page meets.
NOT_ON_THE_PAGE = {
    "model_load_error",  # ends the service at its start
    "model_not_found",  # POST /v1/embeddings only
    "rag_error",  # the base class
    "unsupported_media_type",  # the page sends JSON
    "url_failed",  # the page sends no URLs
    "url_refused",
}
NOT_A_PICTURE = {
    "en-US": "The service cannot read this file as a picture.",
    "uk-UA": "Сервіс не може прочитати цей файл як зображення.",
}
ENGLISH_ONLY = {
    "en-US": "This service understands English only.",
    "uk-UA": "Цей сервіс розуміє лише англійську.",
}


def codes(error: type[ServiceError]) -> set[str]:
    """Return the codes of an error and of its subclasses."""
    return {error.code}.union(*map(codes, error.__subclasses__()))


def texts_of(visit: Visit) -> dict[str, Any]:
    """Return the texts of the page by language."""
    visit.open()
    texts: dict[str, Any] = visit.page.evaluate(
        "import('/ui/texts.js').then((texts) => texts.TEXTS)"
    )
    assert texts.keys() == {"en", "uk"}
    return texts


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    file = tmp_path / "report.pdf"
    file.write_bytes(b"%PDF-1.7\n1 0 obj << /Type /Catalog >> endobj\n%%EOF\n")
    return file


def test_the_language_follows_the_browser_and_the_switch(
    browser: Browser, server: Server, samples: list[Sample]
) -> None:
    visit = visit_of(browser, server, locale="uk-UA")
    visit.open(query="&q=червоний+круг")
    page = visit.page
    expect(page.locator("html")).to_have_attribute("lang", "uk")
    expect(page.locator("#status")).to_have_text("24 зображення, найкращі спочатку")
    expect(page.locator("#collection")).to_have_text(f"{SCENES} зображень у {COLLECTION}")
    expect(page.get_by_label("Що на зображенні")).to_be_visible()
    page.get_by_role("button", name="English").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.locator("#status")).to_have_text("24 pictures, best first")
    page.reload()
    expect(page.get_by_label("What the picture shows")).to_be_visible()
    page.context.close()
    assert visit.wrong == []


@pytest.mark.usefixtures("samples")  # the page shows their collection
def test_both_languages_have_every_text_of_the_page(visit: Visit) -> None:
    texts = texts_of(visit)
    assert texts["en"].keys() == texts["uk"].keys()
    errors = [texts[language].pop("errors") for language in ("en", "uk")]
    assert errors[0].keys() == errors[1].keys()
    for language, forms in (("en", {"one", "other"}), ("uk", {"one", "few", "many"})):
        for key, text in texts[language].items():
            assert isinstance(text, str) or text.keys() == forms, key
    for key, english in texts["en"].items():
        named = [set(re.findall(r"\{\w+\}", json.dumps(t[key]))) for t in texts.values()]
        assert named[0] == named[1], english


@pytest.mark.usefixtures("samples")
def test_both_languages_have_a_text_for_every_error_code_of_the_page(visit: Visit) -> None:
    wanted = codes(ServiceError) - NOT_ON_THE_PAGE
    assert len(wanted) > 10
    for language, texts in texts_of(visit).items():
        assert texts["errors"].keys() == wanted, language


@pytest.mark.parametrize("locale", ["en-US", "uk-UA"])
def test_a_dropped_pdf_is_rejected_in_the_language_of_the_page(
    browser: Browser, server: Server, samples: list[Sample], pdf: Path, locale: str
) -> None:
    visit = visit_of(browser, server, locale=locale)
    visit.allowed = {404, 415}  # 404: the page asks whether the file is indexed
    visit.open()
    drop(visit.page, pdf, "search", "application/pdf")
    alert = visit.page.locator("#alert")
    expect(alert).to_contain_text(NOT_A_PICTURE[locale])
    sentence = alert.locator("details span")
    expect(sentence).to_be_hidden()
    alert.locator("summary").click()
    expect(sentence).to_contain_text("JPEG")  # the service lists its formats
    drop(visit.page, pdf, "add", "application/pdf")
    visit.page.locator("#start-add").click()
    failed = visit.page.locator("#runs li")
    expect(failed).to_contain_text(f"report.pdf {NOT_A_PICTURE[locale]}")
    other = "uk-UA" if locale == "en-US" else "en-US"
    visit.page.locator(f"[data-language={other[:2]}]").click()
    expect(alert).to_contain_text(NOT_A_PICTURE[other])
    expect(failed).to_contain_text(f"report.pdf {NOT_A_PICTURE[other]}")
    visit.page.context.close()
    assert visit.wrong == []


def test_the_sentence_of_the_service_is_shown_for_an_unknown_error_code(
    visit: Visit, samples: list[Sample]
) -> None:
    visit.allowed = {400}
    visit.open()
    visit.page.route("**/search", reject(400, "a new sentence", code="new_code"))
    visit.search("a circle")
    expect(visit.page.locator("#alert div")).to_have_text("a new sentence")


@pytest.mark.parametrize("locale", ["en-US", "uk-UA"])
def test_a_search_in_cyrillic_is_explained_if_the_model_knows_english_only(
    browser: Browser, server: Server, samples: list[Sample], locale: str
) -> None:
    visit = visit_of(browser, server, locale=locale)
    english = httpx.get(f"{server.url}/info").json() | {"languages": "english"}
    visit.page.route("**/info", lambda route: route.fulfill(json=english))
    visit.open()
    advice = visit.page.locator("#advice")
    expect(advice).to_be_hidden()
    visit.search("червоний круг")
    expect(advice).to_contain_text(ENGLISH_ONLY[locale])
    expect(visit.cards).to_have_count(24)
    visit.search("a red circle")
    expect(advice).to_be_hidden()
    visit.page.context.close()
    assert visit.wrong == []


def test_a_search_in_cyrillic_is_not_explained_for_other_models(
    visit: Visit, samples: list[Sample]
) -> None:
    visit.open(query="&q=червоний+круг")
    expect(visit.cards).to_have_count(24)
    expect(visit.page.locator("#advice")).to_be_hidden()
