"""Visit the search page in a browser, and index pictures to find there."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urljoin

import pytest
from playwright.sync_api import Browser, JSHandle, Locator, Page, Route, expect

from tests.support.pictures import file_bytes, scene_image
from tests.support.serving import Server

CHROMIUM = shutil.which("chromium")
COLLECTION = "page"
HOST = "encoder.example"  # the browser resolves it to 127.0.0.1
SCENES = 56  # pictures in COLLECTION
PNG = "image/png"

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"
)


@dataclass(frozen=True)
class Sample:
    """An indexed picture: its file, and its captions in English and Ukrainian."""

    path: Path
    english: str
    ukrainian: str

    @property
    def title(self) -> str:
        return self.path.stem


@dataclass
class Visit:
    """A browser page. `wrong` records errors, failed answers and requests to other hosts."""

    page: Page
    url: str
    wrong: list[str] = field(default_factory=list)
    allowed: set[int] = field(default_factory=set)  # error statuses that are not recorded

    def watch(self) -> None:
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on(
            "console",  # reports violations of the content security policy, too
            lambda said: (
                self.wrong.append(said.text)
                if said.type in ("error", "warning") and "Failed to load" not in said.text
                else None
            ),
        )
        self.page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((self.url, "data:", f"blob:{urljoin(self.url, '/')}"))
                else self.wrong.append(f"a request to {request.url}")
            ),
        )
        self.page.on(
            "response",
            lambda answer: (
                None
                if answer.status < 400 or answer.status in self.allowed
                else self.wrong.append(f"{answer.status} of {answer.url}")
            ),
        )

    def open(self, collection: str = COLLECTION, query: str = "") -> None:
        self.page.goto(f"{self.url}/ui?collection={collection}{query}")
        self._rest()

    def search(self, text: str) -> None:
        self.page.fill("[name=q]", text)
        self.page.press("[name=q]", "Enter")
        self._rest()

    def _rest(self) -> None:
        """Wait until the results are shown."""
        self.page.wait_for_selector("main[aria-busy=false]", state="attached")

    @property
    def cards(self) -> Locator:
        return self.page.locator("#grid > li > button")

    @property
    def titles(self) -> list[str]:
        return self.page.locator("#grid .title").all_text_contents()

    def expect_first(self, title: str) -> None:
        expect(self.cards.first.locator("img")).to_have_attribute("alt", title)


def visit_of(browser: Browser, server: Server, **options: Any) -> Visit:
    """Return a visit to the server in a new browser context with these options."""
    options = {"locale": "en-US", "viewport": {"width": 1280, "height": 800}, **options}
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(10_000)
    visit = Visit(page, server.url)
    visit.watch()
    return visit


def index(server: Server, collection: str, number: int, **fields: Any) -> None:
    """Index scene `number` over HTTP."""
    data = base64.b64encode(file_bytes(scene_image(number))).decode()
    body = {"id": f"picture/{number}", "image_base64": data, "collection": collection, **fields}
    with server.client() as client:
        client.post("/images", json=body).raise_for_status()


def listed(server: Server, collection: str) -> list[dict[str, Any]]:
    with server.client() as client:
        answer = client.get(f"/collections/{collection}/images").raise_for_status()
    images: list[dict[str, Any]] = answer.json()["images"]
    return images


def drop(page: Page, path: Path, zone: Literal["search", "add"], media_type: str = PNG) -> None:
    """Drag a file over the page, and drop it to search by it or to add it."""
    data = {"dataTransfer": transfer(page, path, media_type)}
    page.dispatch_event("body", "dragover", data)
    page.dispatch_event(f"[data-drop={zone}]", "drop", data)


def transfer(page: Page, path: Path, media_type: str = PNG) -> JSHandle:
    """Return the `DataTransfer` of a drop or a paste of one file."""
    return page.evaluate_handle(
        """([data, name, type]) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name, { type }));
          return transfer;
        }""",
        [base64.b64encode(path.read_bytes()).decode(), path.name, media_type],
    )


def reject(
    status: int, error: str = "some sentence", *, code: str = "some_code", **headers: str
) -> Callable[[Route], None]:
    """Return a route handler that answers with an error."""

    def answer(route: Route) -> None:
        route.fulfill(status=status, json={"error": error, "code": code}, headers=headers)

    return answer
