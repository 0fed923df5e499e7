"""Adding pictures on the search page."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, Route, expect

from tests.support.page import Sample, Visit, drop, index, listed, needs_chromium, reject
from tests.support.pictures import file_bytes, scene_image
from tests.support.serving import Server

pytestmark = [pytest.mark.browser, needs_chromium]

HOLD = """const plain = window.fetch;
let held = 0;  // uploads waiting for release()
const released = new Promise((resolve) => (window.release = resolve));
window.fetch = async (path, options) => {
  if (path === "images") {
    document.documentElement.dataset.held = ++held;
    await released;
  }
  return plain(path, options);
};"""


def pictures(folder: Path, first: int, count: int) -> list[Path]:
    """Write `count` scenes to files, starting with scene `first`."""
    files = [folder / f"picture {number}.png" for number in range(first, first + count)]
    for number, file in enumerate(files, first):
        file.write_bytes(file_bytes(scene_image(number)))
    return files


def add(visit: Visit, files: list[Path], *, tenant: str = "", tags: str = "") -> Locator:
    """Add files in the dialog. Return the box that shows the progress."""
    visit.page.get_by_role("button", name="Add pictures").click()
    visit.page.set_input_files("#files", files)
    visit.page.locator("#add [name=dao_id]").fill(tenant)
    visit.page.locator("#add [name=tags]").fill(tags)
    visit.page.locator("#start-add").click()
    return visit.page.locator("#runs article").last


def test_a_file_that_is_not_a_picture_is_named_and_the_others_are_added(
    visit: Visit, server: Server, tmp_path: Path
) -> None:
    visit.allowed = {404, 415}  # the collection does not exist yet
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
    expect(run.locator("li")).to_contain_text(
        "broken.png The service cannot read this file as a picture"
    )
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
    # add the same files again: nothing is embedded or listed twice
    run = add(visit, files[:3], tenant="museum", tags="mine, new")
    expect(run.locator("p")).to_have_text("0 pictures added, 3 were already there")
    assert len(listed(server, "page_added")) == 9


def test_an_indexed_picture_keeps_its_payload_and_gets_missing_tags(
    visit: Visit, server: Server, tmp_path: Path
) -> None:
    visit.allowed = {404}  # for pictures that are not indexed yet
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
    expect(run.locator("p")).to_have_text("1 picture added, 2 were already there")
    images = listed(server, "page_held")
    assert len(images) == 2
    assert before in images
    run = add(visit, [held, new], tenant="museum", tags="mine, old")
    expect(run.locator("p")).to_have_text("0 pictures added, 2 were already there")
    by_id = {image["id"]: image for image in listed(server, "page_held")}
    assert len(by_id) == 2
    after = by_id.pop(before["id"])
    assert after["payload"].pop("indexed_at") > before["payload"].pop("indexed_at")
    assert after == {**before, "payload": {**before["payload"], "tags": ["old", "mine"]}}
    (other,) = by_id.values()
    assert other["payload"]["tags"] == ["mine", "old"]
    run = add(visit, [held], tenant="archive")
    expect(run.locator("p")).to_have_text("1 picture added")


def test_the_dialog_opens_with_the_tenant_of_the_filter_and_without_tags(
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


def test_a_picture_dropped_on_add_is_added(
    visit: Visit, server: Server, samples: list[Sample]
) -> None:
    visit.allowed = {404}
    visit.open("page_dropped")
    drop(visit.page, samples[3].path, "add")
    visit.page.get_by_role("button", name="Add 1 picture", exact=True).click()
    expect(visit.cards).to_have_count(1)
    assert [image["dao_id"] for image in listed(server, "page_dropped")] == ["default"]


def test_an_upload_ends_when_the_service_becomes_unreachable(
    visit: Visit, samples: list[Sample], server: Server
) -> None:
    visit.open()
    tried = []

    def abort(route: Route) -> None:
        tried.append(route)
        route.abort()

    visit.page.route("**/search", abort)  # the page asks whether a picture is indexed
    visit.page.set_input_files("#files", [sample.path for sample in samples[:12]])
    visit.page.get_by_role("button", name="Add 12 pictures").click()
    run = visit.page.locator("#runs article")
    expect(run.locator("p")).to_contain_text("0 pictures added")
    expect(run.locator("p")).to_contain_text("skipped")
    expect(run.locator("li").first).to_contain_text("The service does not answer")
    assert len(tried) <= 8


def test_an_unreadable_file_is_named_and_the_others_are_added(
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
          if (bytes.byteLength === 3) throw new Error("digest failed");
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
    expect(run.locator("li")).to_contain_text(
        ["changed.png This file cannot be read.", "digest failed"]
    )
    expect(add(visit, [good]).locator("p")).to_have_text("0 pictures added, 1 was already there")


def test_pictures_added_to_an_empty_collection_appear_in_the_search(
    visit: Visit, tmp_path: Path
) -> None:
    visit.allowed = {404}
    visit.open("page_filled", "&q=a+circle")
    expect(visit.page.locator("#empty")).to_be_visible()
    add(visit, pictures(tmp_path, 250, 1))
    expect(visit.cards).to_have_count(1)
    expect(visit.page.locator("#empty")).to_be_hidden()


def test_a_finished_upload_keeps_the_results_and_the_focus(
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


def test_stop_lets_requests_under_way_finish_and_skips_the_rest(
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
    expect(second.locator("p")).to_have_text("0 pictures added, 2 skipped")
    first.get_by_role("button", name="Stop").click()
    visit.page.evaluate("release()")
    expect(first.locator("p")).to_have_text("4 pictures added, 2 skipped")
    assert len(listed(server, "page_stopped")) == 4
    expect(add(visit, files[6:]).locator("p")).to_have_text("2 pictures added")


def test_stop_ends_the_wait_for_a_busy_service(visit: Visit, tmp_path: Path) -> None:
    visit.allowed = {404, 429}
    visit.open("page_busy")
    visit.page.route("**/search", reject(429, **{"Retry-After": "10"}))
    with visit.page.expect_response("**/search"):
        run = add(visit, pictures(tmp_path, 230, 1))
    run.get_by_role("button", name="Stop").click()
    expect(run.locator("p")).to_have_text("0 pictures added, 1 skipped")


def test_the_browser_asks_before_leaving_during_an_upload(visit: Visit, tmp_path: Path) -> None:
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


def test_a_file_that_is_too_large_is_rejected_before_it_is_sent(
    visit: Visit, server: Server, samples: list[Sample]
) -> None:
    limit = httpx.get(f"{server.url}/info").json() | {"max_image_bytes": 100}
    visit.page.route("**/info", lambda route: route.fulfill(json=limit))
    visit.open()
    visit.page.set_input_files("#example", samples[0].path)
    expect(visit.page.locator("#alert")).to_contain_text("This file has 1 MB. The limit is 0 MB")
