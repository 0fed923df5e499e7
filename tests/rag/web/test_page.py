"""The search page in a real browser, against the served service."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import (
    Browser,
    JSHandle,
    Locator,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

from models.shapes.captions import caption
from models.shapes.scenes import Scene, draw_scene, sample_scene
from tests.support.pictures import file_bytes, scene_image
from tests.support.serving import Server

CHROMIUM = shutil.which("chromium")
COLLECTION = "page"
SCENES = 56

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="a browser is needed: apt-get install chromium"
)


@dataclass(frozen=True)
class Sample:
    """An indexed picture: its file, and what it shows in English and Ukrainian."""

    path: Path
    english: str
    ukrainian: str

    @property
    def title(self) -> str:
        return self.path.stem


@dataclass
class Visit:
    """A page, and what it should not have done."""

    page: Page
    url: str
    wrong: list[str] = field(default_factory=list)
    allowed: set[int] = field(default_factory=set)  # statuses that the test provokes

    def watch(self) -> None:
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on(
            "console",  # where violations of the content security policy are reported, too
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
                if request.url.startswith((self.url, "data:", f"blob:{self.url}"))
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
        """Wait until what was asked for is shown."""
        self.page.wait_for_selector("main[aria-busy=false]", state="attached")

    @property
    def cards(self) -> Locator:
        return self.page.locator("#grid > li > button")

    @property
    def titles(self) -> list[str]:
        return self.page.locator("#grid .title").all_text_contents()

    def expect_first(self, title: str) -> None:
        expect(self.cards.first.locator("img")).to_have_attribute("alt", title)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=10_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


def visit_of(browser: Browser, server: Server, **options: Any) -> Visit:
    options = {"locale": "en-US", "viewport": {"width": 1280, "height": 800}, **options}
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(10_000)
    visit = Visit(page, server.url)
    visit.watch()
    return visit


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    visit = visit_of(browser, server)
    yield visit
    visit.page.context.close()
    assert visit.wrong == []


@pytest.fixture(scope="module")
def samples(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Pictures never trained on, in files whose names do not tell, indexed by the command."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(11)
    scenes: dict[Scene, None] = {}  # different ones, in order
    while len(scenes) < SCENES:
        scenes[sample_scene(rng, held_out=True)] = None
    samples = []
    for number, scene in enumerate(scenes):
        path = folder / f"scene {number}.png"
        draw_scene(scene, rng, side=160).save(path)
        samples.append(Sample(path, caption(scene, "en", rng), caption(scene, "uk", rng)))
    done = subprocess.run(
        [Path(sys.executable).with_name("vision-rag"), "index", folder, "--collection", COLLECTION],
        env={**os.environ, "VISION_ENCODER_URL": server.url},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return samples


def index(server: Server, collection: str, number: int, **fields: Any) -> None:
    """Index a picture of its own number over HTTP."""
    data = base64.b64encode(file_bytes(scene_image(number))).decode()
    body = {"id": f"picture/{number}", "image_base64": data, "collection": collection, **fields}
    with server.client() as client:
        client.post("/images", json=body).raise_for_status()


def listed(server: Server, collection: str) -> list[dict[str, Any]]:
    with server.client() as client:
        answer = client.get(f"/collections/{collection}/images").raise_for_status()
    images: list[dict[str, Any]] = answer.json()["images"]
    return images


def transfer(page: Page, path: Path) -> JSHandle:
    """Return what a browser hands over when a file is dropped or pasted."""
    return page.evaluate_handle(
        """([data, name]) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name, { type: "image/png" }));
          return transfer;
        }""",
        [base64.b64encode(path.read_bytes()).decode(), path.name],
    )


HOLD = """const plain = window.fetch;
let held = 0;  // pictures that wait to be sent until release() is called
const released = new Promise((resolve) => (window.release = resolve));
window.fetch = async (path, options) => {
  if (path === "images") {
    document.documentElement.dataset.held = ++held;
    await released;
  }
  return plain(path, options);
};"""


def pictures(folder: Path, first: int, count: int) -> list[Path]:
    """Write files of pictures of their own numbers."""
    files = [folder / f"picture {number}.png" for number in range(first, first + count)]
    for number, file in enumerate(files, first):
        file.write_bytes(file_bytes(scene_image(number)))
    return files


def text_of(request: Request) -> Any:
    """Return the text that a request asks for."""
    return json.loads(request.post_data or "{}").get("text")


def add(visit: Visit, files: list[Path], *, tenant: str = "", tags: str = "") -> Locator:
    """Add files through the dialog; return the box that says how that goes."""
    visit.page.get_by_role("button", name="Add pictures").click()
    visit.page.set_input_files("#files", files)
    visit.page.locator("#add [name=dao_id]").fill(tenant)
    visit.page.locator("#add [name=tags]").fill(tags)
    visit.page.locator("#start-add").click()
    return visit.page.locator("#runs article").last


def refuse(status: int, error: str, **headers: str) -> Any:
    """Return a route that answers an error."""
    return lambda route: route.fulfill(
        status=status, json={"error": error, "code": "some_code"}, headers=headers
    )


# ---- searching


def test_the_page_begins_with_pictures_of_the_collection(
    visit: Visit, samples: list[Sample]
) -> None:
    visit.open()
    expect(visit.cards).to_have_count(24)
    expect(visit.page.locator("#collection")).to_have_text(f"{SCENES} pictures in {COLLECTION}")
    expect(visit.page.locator("#grid .score")).to_have_count(0)
    expect(visit.page.locator("[name=q]")).to_be_focused()


def test_typing_alone_shows_the_right_picture_first(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    visit.page.locator("[name=q]").press_sequentially(samples[7].english)
    visit.expect_first(samples[7].title)
    expect(visit.page.locator("#status")).to_have_text("24 pictures, best first")
    expect(visit.cards.first.locator(".score")).to_have_text(re.compile(r"^0\.\d{3}$"))
    expect(visit.cards.first.locator("img")).to_have_js_property("naturalWidth", 160)


def test_descriptions_find_their_pictures(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    right = 0
    for number, sample in enumerate(samples):
        visit.search(sample.english if number % 2 else sample.ukrainian)
        right += visit.titles[0] == sample.title
    assert right / len(samples) >= 0.90


def test_a_dropped_picture_is_found(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    data = transfer(visit.page, samples[3].path)
    visit.page.dispatch_event("body", "dragover", {"dataTransfer": data})
    visit.page.dispatch_event("[data-drop=search]", "drop", {"dataTransfer": data})
    visit.expect_first(samples[3].title)
    expect(visit.cards.first.locator(".score")).to_have_text("1.000")
    expect(visit.page.locator("#chip")).to_contain_text(f"Similar to {samples[3].path.name}")
    expect(visit.page.locator("#drop")).to_be_hidden()


def test_a_pasted_picture_is_found(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    visit.page.evaluate("scrollTo(0, 9999)")
    visit.page.evaluate(
        """(clipboardData) => document.activeElement.dispatchEvent(
          new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }))""",
        transfer(visit.page, samples[4].path),
    )
    visit.expect_first(samples[4].title)
    assert visit.page.evaluate("scrollY") == 0


def test_the_slider_weighs_text_against_picture(visit: Visit, samples: list[Sample]) -> None:
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


def test_what_is_not_wanted_goes_down(visit: Visit, samples: list[Sample]) -> None:
    visit.open(query="&q=a+circle")
    first = next(sample for sample in samples if sample.title == visit.titles[0])
    visit.page.get_by_label("Not", exact=True).fill(first.english)
    expect(visit.cards.first.locator("img")).not_to_have_attribute("alt", first.title)


def test_more_like_a_picture_of_another_tenant(visit: Visit, server: Server) -> None:
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


def test_two_tenants_may_have_pictures_of_one_id(visit: Visit, server: Server) -> None:
    for number, tenant in enumerate(("museum", "archive")):
        index(server, "page_same", number, id="same", dao_id=tenant, metadata={"title": tenant})
    visit.open("page_same")
    for tenant in ("museum", "archive"):
        visit.cards.filter(has_text=tenant).click()
        visit.page.get_by_role("button", name="More like this").click()
        expect(visit.page.locator("#chip-title")).to_have_text(tenant)
        expect(visit.page.locator("#chip-picture")).to_have_attribute("src", re.compile(tenant))
        visit.page.get_by_label("Search without this picture").click()


def test_a_search_is_shown_page_by_page(visit: Visit, samples: list[Sample]) -> None:
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


def test_a_collection_is_shown_page_by_page(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    for count in (48, SCENES):
        visit.page.get_by_role("button", name="Show more").click()
        expect(visit.cards).to_have_count(count)
    assert set(visit.titles) == {sample.title for sample in samples}


def test_show_more_just_after_typing_shows_what_was_typed(
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


def test_a_newer_search_ends_the_older_one(visit: Visit, samples: list[Sample]) -> None:
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


def test_an_answer_is_shown_as_what_was_asked_for(visit: Visit, samples: list[Sample]) -> None:
    held: list[Route] = []
    visit.page.route("**/images?*", lambda route: held.append(route))
    with visit.page.expect_request("**/images?*"):
        visit.page.goto(f"{visit.url}/ui?collection={COLLECTION}")
    # typing has begun, and the search for it has not
    visit.page.eval_on_selector("[name=q]", "input => { input.value = 'a heart'; }")
    held[0].continue_()
    expect(visit.cards).to_have_count(24)
    expect(visit.page.locator("#status")).to_have_text("From this collection")
    expect(visit.page.locator("#grid .score")).to_have_count(0)


def test_what_is_typed_before_the_service_answers_is_searched_for(
    visit: Visit, samples: list[Sample]
) -> None:
    held: list[Route] = []
    visit.page.route("**/info", lambda route: held.append(route))
    with visit.page.expect_request("**/info"):
        visit.page.goto(f"{visit.url}/ui?collection={COLLECTION}&tag=nobody-has-it")
    visit.page.locator("#search [name=tag]").fill("")
    visit.page.locator("[name=q]").press_sequentially(samples[7].english)
    held[0].continue_()
    visit.expect_first(samples[7].title)
    expect(visit.page.locator("[name=q]")).to_have_value(samples[7].english)


def test_what_is_typed_before_the_script_is_there_is_searched_for(
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


def test_a_picture_dropped_before_the_service_answers_is_found(
    visit: Visit, samples: list[Sample]
) -> None:
    held: list[Route] = []
    visit.page.route("**/info", lambda route: held.append(route))
    with visit.page.expect_request("**/info"):
        visit.page.goto(f"{visit.url}/ui?collection={COLLECTION}")
    data = transfer(visit.page, samples[3].path)
    visit.page.dispatch_event("body", "dragover", {"dataTransfer": data})
    visit.page.dispatch_event("[data-drop=search]", "drop", {"dataTransfer": data})
    held[0].continue_()
    visit.expect_first(samples[3].title)
    expect(visit.page.locator("#chip-title")).to_have_text(samples[3].path.name)


def test_filters_restrict_to_a_tenant_and_to_a_tag(visit: Visit, server: Server) -> None:
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


def test_a_search_is_in_the_address_and_back_undoes_it(
    visit: Visit, samples: list[Sample], browser: Browser, server: Server
) -> None:
    visit.open()
    start = visit.titles
    for text in ("small", samples[7].english):  # typed on, with a rest between
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


def test_back_returns_to_a_dropped_picture(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    visit.page.set_input_files("#example", samples[3].path)
    visit.expect_first(samples[3].title)
    visit.page.get_by_label("Search without this picture").click()
    expect(visit.page.locator("#status")).to_have_text("From this collection")
    visit.page.go_back()
    visit.expect_first(samples[3].title)
    expect(visit.page.locator("#chip")).to_be_visible()


# ---- one picture


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


@pytest.mark.parametrize("width", [1280, 360])
def test_a_long_payload_is_shown_from_its_beginning(
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
    for _ in range(2):  # at the dialog's beginning and at its end
        place, around = close.bounding_box(), details.bounding_box()
        assert place and around
        assert 0 <= place["y"] - around["y"] <= 16
        assert 0 <= around["x"] + around["width"] - place["x"] - place["width"] <= 32
        assert details.evaluate("dialog => (dialog.scrollTop = 9999, dialog.scrollTop)") > 500
    close.click()
    expect(details).to_be_hidden()


def test_a_picture_is_forgotten_after_asking(visit: Visit, server: Server) -> None:
    for number in range(3):
        index(server, "page_forget", number, metadata={"title": f"no. {number}"})
    visit.open("page_forget", "&q=a+circle")
    last = visit.titles[2]
    visit.cards.nth(2).click()
    forget = visit.page.get_by_role("button", name="Forget", exact=True)
    forget.click()
    expect(visit.page.get_by_role("button", name="Keep it")).to_be_focused()
    visit.page.keyboard.press("Enter")
    expect(forget).to_be_focused()
    assert len(listed(server, "page_forget")) == 3
    forget.click()
    visit.page.get_by_role("button", name="Forget it").click()
    expect(visit.cards).to_have_count(2)
    assert last not in visit.titles
    expect(visit.cards.nth(1)).to_be_focused()
    expect(visit.page.locator("#status")).to_have_text(f"Forgotten: {last}")
    assert {image["payload"]["title"] for image in listed(server, "page_forget")} == set(
        visit.titles
    )


def test_forgetting_the_last_picture_says_how_to_add_one(visit: Visit, server: Server) -> None:
    for number, query in enumerate(("", "&q=a+circle")):
        index(server, "page_last", number, metadata={"title": f"no. {number}"})
        visit.open("page_last", query)
        visit.cards.first.click()
        visit.page.get_by_role("button", name="Forget", exact=True).click()
        visit.page.get_by_role("button", name="Forget it").click()
        expect(visit.page.locator("#empty")).to_be_visible()
        expect(visit.page.locator("#status")).to_have_text(f"Forgotten: no. {number}")
        expect(visit.page.locator("[name=q]")).to_be_focused()


def test_forgetting_all_that_is_shown_shows_the_next_ones(visit: Visit, server: Server) -> None:
    for number in range(2):
        index(server, "page_next", number, metadata={"title": f"no. {number}"})
    visit.page.route(
        "**/images?limit=24", lambda route: route.continue_(url=route.request.url[:-2] + "1")
    )
    visit.open("page_next")
    visit.cards.first.click()
    (gone,) = visit.titles
    visit.page.get_by_role("button", name="Forget", exact=True).click()
    visit.page.get_by_role("button", name="Forget it").click()
    expect(visit.page.locator("#status")).to_have_text(f"Forgotten: {gone}")
    expect(visit.cards).to_have_count(1)
    assert visit.titles != [gone]


def test_a_failure_to_forget_is_said_in_the_dialog(visit: Visit, samples: list[Sample]) -> None:
    visit.allowed = {503}
    visit.open()
    visit.cards.first.click()
    visit.page.route("**/images/*?*", refuse(503, "the store is away"))
    visit.page.get_by_role("button", name="Forget", exact=True).click()
    visit.page.get_by_role("button", name="Forget it").click()
    expect(visit.page.locator("#details").get_by_role("alert")).to_have_text("the store is away")
    expect(visit.page.locator("#details")).to_be_visible()


def test_a_picture_without_thumbnail_has_a_tile_with_its_title(
    visit: Visit, samples: list[Sample]
) -> None:
    visit.allowed = {404}
    visit.page.route("**/thumbnail?*", refuse(404, "there is no thumbnail"))
    visit.open(query="&q=a+circle")
    expect(visit.page.locator("#grid .missing").first).to_have_text(visit.titles[0])


def test_the_keyboard_is_enough(visit: Visit, samples: list[Sample]) -> None:
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


# ---- adding pictures


def test_a_broken_file_among_good_ones_is_named_and_the_others_are_added(
    visit: Visit, server: Server, tmp_path: Path
) -> None:
    visit.allowed = {404, 415}  # the collection is not there at first
    files = []
    for number in range(9):
        files.append(tmp_path / f"good {number}.png")
        files[-1].write_bytes(file_bytes(scene_image(100 + number)))
    files.insert(3, tmp_path / "broken.png")
    files[3].write_bytes(b"no picture")
    visit.page.add_init_script(
        """const plain = window.fetch;
        let now = 0;
        window.most = 0;
        window.fetch = async (path, options) => {
          if (path !== "images") return plain(path, options);
          window.most = Math.max(window.most, ++now);
          return plain(path, options).finally(() => now--);
        };"""
    )
    visit.open("page_added")
    expect(visit.page.locator("#empty")).to_contain_text("vision-rag index FOLDER")
    visit.page.get_by_role("button", name="Add pictures").click()
    visit.page.set_input_files("#files", files)
    dialog = visit.page.get_by_role("dialog")
    dialog.get_by_label("Tenant").fill("museum")
    dialog.get_by_label("Tags").fill("mine, new ,")
    dialog.get_by_role("button", name="Add 10 pictures").click()
    run = visit.page.locator("#runs article")
    expect(run.locator("p")).to_have_text("9 pictures added, 1 could not be added")
    expect(run.locator("li")).to_have_count(1)
    expect(run.locator("li")).to_contain_text("broken.png these bytes are not a picture")
    expect(visit.cards).to_have_count(9)
    expect(visit.page.locator("#empty")).to_be_hidden()
    assert visit.page.evaluate("window.most") == 4
    for image in listed(server, "page_added"):
        assert image["dao_id"] == "museum"
        assert image["payload"]["tags"] == ["mine", "new"]
        assert image["path"] == f"{image['payload']['title']}.png"
        assert re.fullmatch("[0-9a-f]{32}", image["id"])
        assert image["payload"]["content_hash"].startswith(image["id"])
    run.get_by_role("button", name="Close").click()
    expect(run).to_have_count(0)
    expect(visit.page.get_by_role("button", name="Add pictures")).to_be_focused()
    # the same again: nothing is embedded twice, nor listed twice
    run = add(visit, files[:3], tenant="museum", tags="mine, new")
    expect(run.locator("p")).to_have_text("0 pictures added, 3 were there already")
    assert len(listed(server, "page_added")) == 9


def test_what_is_there_already_keeps_all_that_is_known_of_it(
    visit: Visit, server: Server, tmp_path: Path
) -> None:
    visit.allowed = {404}  # of a picture that is not there yet
    held, new, copy = (tmp_path / f"{name}.png" for name in ("held", "new", "copy"))
    held.write_bytes(file_bytes(scene_image(200)))
    for file in (new, copy):
        file.write_bytes(file_bytes(scene_image(201)))
    index(
        server,
        "page_held",
        200,
        id=sha256(held.read_bytes()).hexdigest()[:32],
        dao_id="museum",
        image_path=str(held),
        duplicates=["/elsewhere.png"],
        metadata={"title": "Sunset", "tags": ["old"], "year": 1999},
    )
    (before,) = listed(server, "page_held")
    visit.open("page_held")
    run = add(visit, [held, new, copy], tenant="museum")
    expect(run.locator("p")).to_have_text("1 picture added, 2 were there already")
    images = listed(server, "page_held")
    assert len(images) == 2 and before in images
    run = add(visit, [held, new], tenant="museum", tags="mine, old")
    expect(run.locator("p")).to_have_text("0 pictures added, 2 were there already")
    images = {image["id"]: image for image in listed(server, "page_held")}
    assert len(images) == 2
    after = images.pop(before["id"])
    assert after["payload"].pop("indexed_at") > before["payload"].pop("indexed_at")
    assert after == {**before, "payload": {**before["payload"], "tags": ["old", "mine"]}}
    (other,) = images.values()
    assert other["payload"]["tags"] == ["mine", "old"]
    run = add(visit, [held], tenant="archive")
    expect(run.locator("p")).to_have_text("1 picture added")


def test_the_dialog_opens_with_the_tenant_of_the_filter_and_no_tags(
    visit: Visit, samples: list[Sample]
) -> None:
    tenant, tags = (visit.page.locator(f"#add [name={name}]") for name in ("dao_id", "tags"))
    visit.open(query="&dao_id=museum")
    visit.page.get_by_role("button", name="Add pictures").click()
    expect(tenant).to_have_value("museum")
    tags.fill("old")
    visit.page.keyboard.press("Escape")
    for now in ("archive", ""):
        visit.page.locator("#search [name=dao_id]").fill(now)
        visit.page.get_by_role("button", name="Add pictures").click()
        expect(tenant).to_have_value(now)
        expect(tags).to_have_value("")
        visit.page.keyboard.press("Escape")


def test_a_picture_dropped_to_be_added_is_added(
    visit: Visit, server: Server, samples: list[Sample]
) -> None:
    visit.allowed = {404}
    visit.open("page_dropped")
    data = transfer(visit.page, samples[3].path)
    visit.page.dispatch_event("body", "dragover", {"dataTransfer": data})
    visit.page.dispatch_event("[data-drop=add]", "drop", {"dataTransfer": data})
    visit.page.get_by_role("button", name="Add 1 picture", exact=True).click()
    expect(visit.cards).to_have_count(1)
    assert [image["dao_id"] for image in listed(server, "page_dropped")] == ["default"]


def test_a_run_ends_when_the_service_goes_away(
    visit: Visit, samples: list[Sample], server: Server
) -> None:
    visit.open()
    tried = []

    def refuse_connection(route: Route) -> None:
        tried.append(route)
        route.abort()

    visit.page.route("**/search", refuse_connection)  # whether the first ones are there already
    visit.page.set_input_files("#files", [sample.path for sample in samples[:12]])
    visit.page.get_by_role("button", name="Add 12 pictures").click()
    run = visit.page.locator("#runs article")
    expect(run.locator("p")).to_contain_text("0 pictures added")
    expect(run.locator("p")).to_contain_text("left out")
    expect(run.locator("li").first).to_contain_text("The service does not answer")
    assert len(tried) <= 8


def test_a_file_that_cannot_be_read_is_named_and_holds_nothing_up(
    visit: Visit, server: Server, tmp_path: Path
) -> None:
    visit.allowed = {404}
    visit.page.add_init_script(
        """const { arrayBuffer } = Blob.prototype;
        Blob.prototype.arrayBuffer = async function () {
          if (this.name === "changed.png") throw new DOMException("gone", "NotReadableError");
          return arrayBuffer.call(this);
        };
        const digest = crypto.subtle.digest.bind(crypto.subtle);
        crypto.subtle.digest = async (name, bytes) => {
          if (bytes.byteLength === 3) throw new Error("it is odd");
          return digest(name, bytes);
        };"""
    )
    changed, odd, good = files = [tmp_path / f"{name}.png" for name in ("changed", "odd", "good")]
    changed.write_bytes(b"it was another")
    odd.write_bytes(b"odd")
    good.write_bytes(file_bytes(scene_image(210)))
    visit.open("page_unreadable")
    run = add(visit, files)
    expect(run.locator("p")).to_have_text("1 picture added, 2 could not be added")
    expect(run.locator("li")).to_contain_text(["changed.png The file cannot be read.", "it is odd"])
    expect(add(visit, [good]).locator("p")).to_have_text("0 pictures added, 1 was there already")


def test_pictures_are_added_where_a_search_found_an_empty_collection(
    visit: Visit, tmp_path: Path
) -> None:
    visit.allowed = {404}
    visit.open("page_filled", "&q=a+circle")
    expect(visit.page.locator("#empty")).to_be_visible()
    add(visit, pictures(tmp_path, 250, 1))
    expect(visit.cards).to_have_count(1)
    expect(visit.page.locator("#empty")).to_be_hidden()


def test_the_end_of_an_upload_leaves_the_reader_where_they_are(
    visit: Visit, server: Server, tmp_path: Path
) -> None:
    visit.allowed = {404}
    for number in range(2):
        index(server, "page_reading", number)
    visit.page.add_init_script(HOLD)
    visit.open("page_reading")
    add(visit, pictures(tmp_path, 260, 1))
    visit.cards.nth(1).click()
    visit.page.evaluate("release()")
    expect(visit.page.locator("#collection")).to_have_text("3 pictures in page_reading")
    visit.page.keyboard.press("Escape")
    expect(visit.cards.nth(1)).to_be_focused()
    expect(visit.cards).to_have_count(2)


def test_stop_lets_finish_what_is_under_way_and_ends_what_waits_at_once(
    visit: Visit, server: Server, tmp_path: Path
) -> None:
    visit.allowed = {404}
    visit.page.add_init_script(HOLD)
    visit.open("page_stopped")
    files = pictures(tmp_path, 220, 8)
    first, second = (visit.page.locator("#runs article").nth(number) for number in range(2))
    add(visit, files[:6])
    expect(visit.page.locator("html")).to_have_attribute("data-held", "4")
    add(visit, files[6:])
    expect(second.locator("p")).to_have_text("Adding 2 pictures")
    second.get_by_role("button", name="Stop").click()
    expect(second.locator("p")).to_have_text("0 pictures added, 2 were left out")
    first.get_by_role("button", name="Stop").click()
    visit.page.evaluate("release()")
    expect(first.locator("p")).to_have_text("4 pictures added, 2 were left out")
    assert len(listed(server, "page_stopped")) == 4
    expect(add(visit, files[6:]).locator("p")).to_have_text("2 pictures added")


def test_stop_ends_the_waiting_for_a_busy_service(visit: Visit, tmp_path: Path) -> None:
    visit.allowed = {404, 429}
    visit.open("page_busy")
    visit.page.route("**/search", refuse(429, "busy", **{"Retry-After": "10"}))
    with visit.page.expect_response("**/search"):
        run = add(visit, pictures(tmp_path, 230, 1))
    run.get_by_role("button", name="Stop").click()
    expect(run.locator("p")).to_have_text("0 pictures added, 1 was left out")


def test_leaving_during_an_upload_is_asked_about(visit: Visit, tmp_path: Path) -> None:
    visit.allowed = {404}
    visit.page.add_init_script(HOLD)
    visit.open("page_leaving")
    run = add(visit, pictures(tmp_path, 240, 1))
    expect(visit.page.locator("html")).to_have_attribute("data-held", "1")
    with visit.page.expect_event("dialog") as asked:
        visit.page.close(run_before_unload=True)
    assert asked.value.type == "beforeunload"
    asked.value.dismiss()
    visit.page.evaluate("release()")
    expect(run.locator("p")).to_have_text("1 picture added")
    with visit.page.expect_event("close"):
        visit.page.close(run_before_unload=True)


def test_a_file_that_is_too_large_is_not_sent(
    visit: Visit, server: Server, samples: list[Sample]
) -> None:
    limit = httpx.get(f"{server.url}/info").json() | {"max_image_bytes": 100}
    visit.page.route("**/info", lambda route: route.fulfill(json=limit))
    visit.open()
    visit.page.set_input_files("#example", samples[0].path)
    expect(visit.page.locator("#alert")).to_contain_text("The file has 1 MB; at most 0 MB")


# ---- what goes wrong


def test_an_error_is_shown_and_trying_again_helps(visit: Visit, samples: list[Sample]) -> None:
    visit.allowed = {503}
    visit.open()
    visit.page.route("**/search", refuse(503, "Qdrant does not answer at <b>nowhere</b>"))
    visit.search("a circle")
    alert = visit.page.locator("main").get_by_role("alert")
    expect(alert).to_contain_text("Qdrant does not answer at <b>nowhere</b>")
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


def test_a_failure_to_show_more_is_shown_where_more_would_be(
    visit: Visit, samples: list[Sample]
) -> None:
    visit.allowed = {503}
    visit.open(query="&q=a+heart")
    visit.page.route("**/search", refuse(503, "the store is away"))
    visit.page.get_by_role("button", name="Show more").click()
    alert = visit.page.locator("main").get_by_role("alert")
    expect(alert.locator("p")).to_be_in_viewport()
    expect(alert.get_by_role("button", name="Try again")).to_be_focused()
    visit.page.unroute("**/search")
    visit.page.keyboard.press("Enter")
    expect(visit.cards).to_have_count(48)
    expect(visit.cards.nth(24)).to_be_focused()
    expect(alert).to_be_hidden()
    visit.page.route("**/search", refuse(503, "the store is away"))
    visit.search("a circle")
    expect(visit.page.locator("#alert + #grid")).to_be_attached()


def test_the_count_comes_back_with_the_service(visit: Visit, samples: list[Sample]) -> None:
    visit.allowed = {503}
    visit.page.route("**/collections/**", refuse(503, "the store is away"))
    visit.open()
    expect(visit.page.locator("#collection")).to_have_text(COLLECTION)
    visit.page.unroute("**/collections/**")
    visit.page.get_by_role("button", name="Try again").click()
    expect(visit.cards).to_have_count(24)
    expect(visit.page.locator("#collection")).to_have_text(f"{SCENES} pictures in {COLLECTION}")


def test_a_service_that_is_away_at_the_start_is_said_in_the_language_of_the_moment(
    visit: Visit, samples: list[Sample]
) -> None:
    visit.page.route("**/info", lambda route: route.abort())
    visit.open()
    alert = visit.page.locator("main").get_by_role("alert")
    expect(alert).to_contain_text("The service does not answer")
    visit.page.get_by_role("button", name="Українська").click()
    expect(alert).to_contain_text("Служба не відповідає")
    visit.page.unroute("**/info")
    alert.get_by_role("button", name="Спробувати ще раз").click()
    expect(visit.cards).to_have_count(24)
    expect(alert).to_be_hidden()


def test_a_service_that_is_away_is_said(visit: Visit, samples: list[Sample]) -> None:
    visit.open()
    visit.page.route("**/search", lambda route: route.abort())
    visit.search("a circle")
    expect(visit.page.locator("#alert")).to_contain_text("The service does not answer")


def test_a_busy_service_is_asked_again_when_it_says(visit: Visit, samples: list[Sample]) -> None:
    visit.allowed = {429}
    visit.open()
    answers = [refuse(429, "busy", **{"Retry-After": "1"}), lambda route: route.continue_()]
    visit.page.route("**/search", lambda route: answers.pop(0)(route))
    visit.page.fill("[name=q]", samples[7].english)
    expect(visit.page.locator("#status")).to_have_text("Busy: trying again in 1 second")
    visit.expect_first(samples[7].title)


def test_a_service_that_stays_busy_is_asked_four_times(visit: Visit, samples: list[Sample]) -> None:
    visit.allowed = {429}
    visit.open()
    asked = []

    def stay_busy(route: Route) -> None:
        asked.append(route)
        refuse(429, "2000 texts are queued", **{"Retry-After": "0.05"})(route)

    visit.page.route("**/search", stay_busy)
    visit.search("a circle")
    expect(visit.page.locator("#alert")).to_contain_text("2000 texts are queued")
    assert len(asked) == 4


def test_a_service_without_search_says_how_to_turn_it_on(visit: Visit, server: Server) -> None:
    off = httpx.get(f"{server.url}/info").json() | {"qdrant_enabled": False, "collection": None}
    visit.page.route("**/info", lambda route: route.fulfill(json=off))
    visit.page.goto(f"{server.url}/ui")
    expect(visit.page.locator("#off")).to_contain_text("QDRANT_ENABLED=true")
    expect(visit.page.get_by_role("search")).to_be_hidden()
    expect(visit.page.get_by_role("button", name="Add pictures")).to_be_hidden()
    visit.page.get_by_role("button", name="Українська").click()
    expect(visit.page.locator("#off")).to_contain_text("Пошук вимкнено")


def test_an_empty_collection_says_how_to_fill_it(visit: Visit, server: Server) -> None:
    index(server, "page_emptied", 0)
    with server.client() as client:
        client.delete("/images/picture%2F0?collection=page_emptied").raise_for_status()
    visit.page.goto(f"{server.url}/ui?collection=page_emptied")
    expect(visit.page.locator("#empty")).to_contain_text("vision-rag index FOLDER")
    visit.search("a circle")
    expect(visit.page.locator("#empty")).to_be_visible()


def test_nothing_found_is_said(visit: Visit, samples: list[Sample]) -> None:
    visit.open(query="&q=a+circle&tag=nobody-has-it")
    expect(visit.page.locator("#status")).to_contain_text("Nothing found")
    expect(visit.page.locator("#empty")).to_be_hidden()


# ---- for everybody


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


def test_every_text_of_the_page_is_there_in_both_languages(visit: Visit) -> None:
    visit.page.goto(f"{visit.url}/ui")
    texts = visit.page.evaluate("import('/ui/texts.js').then((page) => page.TEXTS)")
    assert texts["en"].keys() == texts["uk"].keys()
    for language, forms in (("en", {"one", "other"}), ("uk", {"one", "few", "many"})):
        for key, text in texts[language].items():
            assert isinstance(text, str) or text.keys() == forms, key
    for key, english in texts["en"].items():
        named = [set(re.findall(r"\{\w+\}", json.dumps(t[key]))) for t in texts.values()]
        assert named[0] == named[1], english


@pytest.mark.parametrize("locale", ["en-US", "uk-UA"])
def test_a_phone_in_the_dark_needs_no_sideways_scrolling(
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


def test_a_placeholder_can_be_read(browser: Browser, server: Server) -> None:
    visit = visit_of(browser, server, color_scheme="light")
    visit.page.goto(f"{server.url}/ui")
    look = """selector => {
      const { color, backgroundColor, opacity } = getComputedStyle(
        document.querySelector(selector), selector === "[name=q]" ? "::placeholder" : null);
      return [color, backgroundColor, opacity];
    }"""
    color, _, opacity = visit.page.evaluate(look, "[name=q]")
    _, ground, _ = visit.page.evaluate(look, ".bar")
    assert opacity == "1" and contrast(color, ground) >= 4.5
    visit.page.context.close()


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, `rgb(r, g, b)`, as WCAG 2 defines it."""
    values = np.array([re.findall(r"\d+", color)[:3] for color in (one, other)], float) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return float((light + 0.05) / (dark + 0.05))


def test_the_focus_and_what_is_chosen_are_seen_where_colours_are_forced(
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
