"""Take the pictures of the search page for the docs.

make demo                                # in one terminal: a service with the sample pictures
python docs/images/search_page.py        # in another; the service's address may follow
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Page, sync_playwright

_HERE = Path(__file__).parent
_SHOTS: dict[str, dict[str, Any]] = {
    "search-page": {"viewport": {"width": 1280, "height": 860}},
    "search-page-dark": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark"},
    "search-page-phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "locale": "uk-UA",
    },
}
_TEXTS = {
    "search-page": "a red circle on a yellow background",
    "search-page-dark": "a small red cross on a green background",
    "search-page-phone": "три рожеві серця",
}


def _search(page: Page, url: str, text: str) -> None:
    page.goto(f"{url}/ui?q={quote(text)}")
    page.wait_for_selector("main[aria-busy=false] #grid li")


def main(url: str) -> None:
    """Write a PNG file for each of the pictures beside this script."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name, options in _SHOTS.items():
            page = browser.new_context(**{"locale": "en-US", **options}).new_page()
            _search(page, url, _TEXTS[name])
            if name == "search-page-dark":  # a picture and a text together
                page.locator("#grid button").first.click()
                page.click("#like-this")
                page.fill("[name=q]", "a star")
                page.press("[name=q]", "Enter")
                page.wait_for_selector("main[aria-busy=false] #grid .score")
            page.wait_for_load_state("networkidle")
            page.screenshot(path=_HERE / f"{name}.png", animations="disabled")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8001")
