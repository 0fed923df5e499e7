"""The routes that index, change, list and search pictures, and serve thumbnails."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image

from bento import Encoder
from rag import identity_of
from rag.pictures.index import point_id
from tests.support.bento.asking import JSON, PNG, assert_same
from tests.support.pictures import encoded, file_bytes, scene_image
from tests.support.serving import Server

pytestmark = pytest.mark.service


def test_a_picture_is_indexed_found_and_deleted(http: httpx.Client) -> None:
    data = file_bytes(scene_image(10))
    body = {
        "id": "folder/ten.png",
        "image_base64": encoded(data),
        "dao_id": "lifecycle",
        "image_path": "folder/ten.png",
        "metadata": {"title": "Ten", "tags": ["a", "b"]},
    }
    first = http.post("/images", json=body)
    assert first.status_code == 200, first.text
    assert first.json() == {
        "id": "folder/ten.png",
        "dao_id": "lifecycle",
        "collection": "daarion_images",
        "outcome": "indexed",
    }
    assert http.post("/images", json=body).json()["outcome"] == "unchanged"
    changed = {**body, "metadata": {"title": "Another"}}
    assert http.post("/images", json=changed).json()["outcome"] == "updated"

    search = {"image": {"image_base64": encoded(data)}, "dao_id": "lifecycle"}
    answer = http.post("/search", json=search).json()
    assert answer["count"] == 1
    hit = answer["hits"][0]
    assert (hit["id"], hit["path"]) == ("folder/ten.png", "folder/ten.png")
    assert hit["score"] == pytest.approx(1, abs=1e-4)
    assert hit["payload"]["title"] == "Another"
    assert hit["payload"]["dao_id"] == "lifecycle"
    assert http.post("/search", json={**search, "dao_id": "other"}).json()["hits"] == []

    wrong_tenant = http.delete("/images/folder/ten.png")
    assert wrong_tenant.json()["deleted"] is False
    gone = http.delete("/images/folder%2Ften.png", params={"dao_id": "lifecycle"})
    assert gone.json() == {"id": "folder/ten.png", "dao_id": "lifecycle", "deleted": True}
    assert http.post("/search", json=search).json()["count"] == 0


def test_a_file_that_is_not_an_image_is_not_indexed(http: httpx.Client) -> None:
    body = {"id": "bad", "image_base64": encoded(b"text"), "dao_id": "bad"}
    assert http.post("/images", json=body).status_code == 415
    assert http.post("/search", json={"text": "x", "dao_id": "bad"}).json()["hits"] == []


def test_a_payload_is_replaced_without_the_image(http: httpx.Client) -> None:
    body = {"id": "a/b", "image_base64": PNG, "dao_id": "patch", "image_path": "/old.png"}
    http.post("/images", json={**body, "metadata": {"title": "old", "n": 1}})
    tenant = {"dao_id": "patch"}
    moved = http.patch("/images/a%2Fb", params=tenant, json={"paths": ["/new.png", "/twin.png"]})
    assert moved.json() == {"id": "a/b", "dao_id": "patch", "updated": True}
    http.patch("/images/a%2Fb", params=tenant, json={"metadata": {"title": "new"}})
    (held,) = http.get("/collections/daarion_images/images", params=tenant).json()["images"]
    assert (held["path"], held["payload"]["duplicates"]) == ("/new.png", ["/twin.png"])
    assert held["payload"]["title"] == "new"
    assert "n" not in held["payload"]
    http.patch("/images/a%2Fb", params=tenant, json={"paths": ["/new.png"]})
    (held,) = http.get("/collections/daarion_images/images", params=tenant).json()["images"]
    assert "duplicates" not in held["payload"]
    assert http.patch("/images/a%2Fb", json={"paths": []}).json()["updated"] is False
    for bad, named in (
        ("{", "JSON"),
        ('{"metadata": {"dao_id": "x"}}', "dao_id"),
        ('{"x": 1}', "x"),
    ):
        refused = http.patch("/images/a%2Fb", params=tenant, content=bad, headers=JSON)
        assert refused.status_code == 400
        assert named in refused.json()["error"]


def test_a_collection_is_listed_page_by_page(http: httpx.Client) -> None:
    for n in range(5):
        body = {"id": f"{n}", "image_base64": PNG, "dao_id": f"dao{n % 2}", "collection": "paged"}
        http.post("/images", json={**body, "image_path": f"/{n}.png", "metadata": {"n": n}})
    listed: list[Any] = []
    start: dict[str, str] = {}
    for _ in range(3):
        page = http.get("/collections/paged/images", params={"limit": "2", **start}).json()
        listed += page["images"]
        start = {"start": page["next"]}
    assert page["next"] is None
    assert sorted(image["payload"]["n"] for image in listed) == [0, 1, 2, 3, 4]
    assert {(image["id"], image["dao_id"], image["path"]) for image in listed} == {
        (f"{n}", f"dao{n % 2}", f"/{n}.png") for n in range(5)
    }
    mine = http.get("/collections/paged/images", params={"dao_id": "dao1"}).json()["images"]
    assert {image["id"] for image in mine} == {"1", "3"}
    for bad in ("0", "1001", "many", "", "-1", "9" * 5000):
        refused = http.get("/collections/paged/images", params={"limit": bad})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    unknown = http.get("/collections/paged/images", params={"generation": "ffffffff"})
    assert unknown.json()["code"] == "collection_not_found"


def test_stats_describe_a_collection(http: httpx.Client, encoder: Encoder) -> None:
    body = {"id": "1", "image_base64": PNG, "collection": "counted"}
    assert http.post("/images", json=body).json()["collection"] == "counted"
    assert http.get("/collections/counted").json() == {
        "collection": "counted",
        "points": 1,
        "model": "local-dir:shapes/local",
        "dimension": encoder.embedding_dim,
        "generation": (generation := identity_of(encoder).generation),
        "generations": {generation: 1},
        "serving": generation,
    }
    assert http.get("/collections/none").json()["code"] == "collection_not_found"


def test_a_staged_version_of_the_same_model_is_the_published_one(http: httpx.Client) -> None:
    body = {"id": "1", "image_base64": PNG, "collection": "staged", "staged": True}
    assert http.post("/images", json=body).json()["outcome"] == "indexed"
    assert http.post("/search", json={"text": "x", "collection": "staged"}).status_code == 404
    published = http.post("/collections/staged/publish").json()
    assert published["replaced"] is None
    assert http.post("/search", json={"text": "x", "collection": "staged"}).json()["count"] == 1
    url = f"/collections/staged/generations/{published['generation']}"
    refused = http.delete(url)
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    assert http.delete("/collections/staged/generations/ffffffff").json()["dropped"] is False
    assert http.post("/collections/none/publish").status_code == 404


def test_a_url_reaches_only_the_picture_that_it_names(http: httpx.Client) -> None:
    ids = ["abc", "abc/thumbnail", "abc/", "/abc", "a//c", "a;c", "a%2Fc", " abc ", "a/../c", "?#"]
    tenant, body = {"dao_id": "urls"}, {"dao_id": "urls", "image_base64": PNG}
    for name in ids:
        assert http.post("/images", json={**body, "id": name}).status_code == 200
        url = f"/images/{quote(name, safe='')}"
        changed = http.patch(url, params=tenant, json={"metadata": {"named": name}})
        assert (changed.json()["id"], changed.json()["updated"]) == (name, True)
        assert http.get(f"{url}/thumbnail", params=tenant).status_code == 200
    for path in ("abc%0A", "a%0Ac", "abc%00", "abc%C2%85", "abc%0A/thumbnail", "abc/thumbnail%0A"):
        for method in ("GET", "PATCH", "DELETE"):
            sent: dict[str, Any] = {"json": {"paths": []}} if method == "PATCH" else {}
            answer = http.request(method, f"/images/{path}", params=tenant, **sent)
            assert answer.status_code in (400, 404, 405), (method, path, answer.text)
    held = http.get("/collections/daarion_images/images", params=tenant).json()["images"]
    assert sorted((image["id"], image["payload"]["named"]) for image in held) == sorted(
        zip(ids, ids, strict=True)
    )
    for name in reversed(ids):
        url = f"/images/{quote(name, safe='')}"
        assert http.delete(url, params=tenant).json() == {"id": name, **tenant, "deleted": True}


@pytest.mark.parametrize("name", ["abc\n", "a\nc", "\0", "\x7f", "\x85", "..", "n" * 1025])
def test_an_id_that_no_url_can_name_is_rejected(http: httpx.Client, name: str) -> None:
    answer = http.post("/images", json={"id": name, "image_base64": PNG})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["error"].startswith("id: ")
    answer = http.post("/search", json={"image": {"id": name}})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def test_a_search_ranks_by_cosine(http: httpx.Client, encoder: Encoder) -> None:
    images = [file_bytes(scene_image(seed)) for seed in range(20, 28)]
    for i, data in enumerate(images):
        body = {"id": str(i), "image_base64": encoded(data), "dao_id": "rank"}
        assert http.post("/images", json=body).json()["outcome"] == "indexed"
    query = "a large green star"
    cosines = encoder.encode_images(images) @ encoder.encode_texts([query])[0]
    search = {"text": query, "dao_id": "rank", "top_k": 3}
    hits = http.post("/search", json=search).json()["hits"]
    order = np.argsort(-cosines)[:3]
    assert [hit["id"] for hit in hits] == [str(i) for i in order]
    assert_same([hit["score"] for hit in hits], cosines[order])
    threshold = float(cosines[order[1]]) - 1e-4
    few = http.post("/search", json={**search, "score_threshold": threshold}).json()
    assert few["count"] == 2


def test_a_failed_search_has_the_shape_of_a_search_response(http: httpx.Client) -> None:
    body = {"text": "x", "collection": "never", "language": "en"}
    answer = http.post("/search", json=body)
    assert answer.status_code == 404
    degraded = answer.json()
    assert (degraded["success"], degraded["hits"], degraded["count"]) == (False, [], 0)
    assert degraded["code"] == "collection_not_found"
    assert degraded["error"] in degraded["formatted_text"]


def nested(depth: int) -> str:
    """Return `depth` nested filters as JSON."""
    return '{"must": [' * depth + "]}" * depth


def test_a_search_by_an_uploaded_picture(http: httpx.Client) -> None:
    data = file_bytes(scene_image(30))
    for name, tags in (("a", ["x"]), ("b", ["y"])):
        body = {"id": name, "image_base64": encoded(data), "dao_id": "up"}
        http.post("/images", json={**body, "metadata": {"tags": tags}})
    wanted = {"dao_id": "up", "filter": {"must": [{"key": "tags", "match": {"value": "y"}}]}}
    answer = http.post("/search/upload", files={"file": data}, data={"search": json.dumps(wanted)})
    (hit,) = answer.json()["hits"]
    assert (hit["id"], answer.status_code) == ("b", 200)
    assert hit["score"] == pytest.approx(1, abs=1e-4)
    assert http.post("/search/upload", files={"file": data}).json()["count"] >= 2
    for files, search, status, code in (
        ({}, "{}", 415, "unsupported_media_type"),
        ({"file": (None, "text")}, "{}", 400, "invalid_request"),
        ({"file": data}, "[]", 400, "invalid_request"),
        ({"file": data}, "{", 400, "invalid_request"),
        ({"file": data}, f'{{"filter": {nested(40)}}}', 400, "invalid_request"),
        ({"file": data}, f'{{"filter": {nested(2000)}}}', 400, "invalid_request"),
        ({"file": data}, '{"top_k": 0}', 400, "invalid_request"),
        ({"file": data, "more": b"x"}, "{}", 400, "invalid_request"),
        ({"file": b"text"}, "{}", 415, "not_an_image"),
        ({"file": data}, '{"collection": "never"}', 404, "collection_not_found"),
    ):
        refused = http.post("/search/upload", files=files, data={"search": search})
        assert (refused.status_code, refused.json()["code"]) == (status, code), refused.text


def test_each_search_of_a_batch_has_its_own_answer(http: httpx.Client) -> None:
    http.post("/images", json={"id": "a", "image_base64": PNG, "dao_id": "many"})
    searches = [
        {"text": "a circle", "dao_id": "many"},
        {"text": "a circle", "top_k": 0},
        {"image": {"id": "a"}, "dao_id": "nobody"},
        {"image": {"image_base64": encoded(b"text")}},
        {"text": "a circle", "collection": "never"},
        {"image": {"image_base64": PNG}, "dao_id": "many", "weights": [0.5]},
        {"text": "a circle", "filter": {"must": [{"key": "a", "match": {}}]}},
        "nothing like it",
    ]
    assert http.post("/search/batch", json={"searches": searches}).status_code == 400
    results = http.post("/search/batch", json={"searches": searches[:-1]}).json()["results"]
    assert [result["success"] for result in results] == [
        True,
        False,
        False,
        False,
        False,
        True,
        False,
    ]
    assert [result["code"] for result in results if not result["success"]] == [
        "invalid_request",
        "image_not_found",
        "not_an_image",
        "collection_not_found",
        "invalid_request",
    ]
    assert "top_k" in results[1]["error"]
    assert [hit["id"] for hit in results[0]["hits"]] == ["a"]
    assert results[5]["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert http.post("/search/batch", json={"searches": []}).status_code == 400
    assert http.post("/search/batch", json={"searches": [searches[0]] * 101}).status_code == 400


def kept(server: Server, dao_id: str, image_id: str) -> list[Path]:
    """Return the files of a picture's thumbnails."""
    return list(server.log.parent.glob(f"thumbnails/*/*/{point_id(dao_id, image_id)}*"))


def test_a_thumbnail_comes_from_the_upload(
    http: httpx.Client, server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "large.png"
    scene_image(40, side=900).save(file)
    url, tenant = "/images/one%2Flarge.png/thumbnail", {"dao_id": "thumbs"}
    body = {"id": "one/large.png", "dao_id": "thumbs", "image_base64": encoded(file.read_bytes())}
    for path in (str(file), "large.png", ""):
        assert http.post("/images", json={**body, "image_path": path}).status_code == 200
        file.unlink(missing_ok=True)
        answer = http.get(url, params=tenant)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).size == (384, 384)
        again = http.get(url, params=tenant, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert http.get(url).status_code == 404  # another tenant
        http.delete("/images/one%2Flarge.png", params=tenant)
        assert http.get(url, params=tenant).status_code == 404
        assert not kept(server, "thumbs", "one/large.png")  # deleted with the picture


def test_a_lost_thumbnail_is_made_again_from_an_upload_or_an_allowed_file(
    http: httpx.Client, server: Server, tmp_path: Path
) -> None:
    allowed, elsewhere = server.log.parent / "files" / "a.png", tmp_path / "a.png"
    allowed.parent.mkdir(exist_ok=True)
    scene_image(43).save(allowed)
    scene_image(43).save(elsewhere)
    body = {"id": "lost", "dao_id": "lost", "image_base64": encoded(allowed.read_bytes())}
    url, tenant = "/images/lost/thumbnail", {"dao_id": "lost"}
    for path, status in ((elsewhere, 404), (allowed, 200)):
        http.post("/images", json={**body, "image_path": str(path)})
        (thumbnail,) = kept(server, "lost", "lost")
        thumbnail.unlink()
        assert http.get(url, params=tenant).status_code == status
    (thumbnail,) = kept(server, "lost", "lost")
    thumbnail.unlink()
    sent = http.post("/images", json={**body, "image_path": str(allowed)})
    assert sent.json()["outcome"] == "unchanged"
    assert kept(server, "lost", "lost")


def test_a_thumbnail_shows_only_the_indexed_picture(
    http: httpx.Client, server: Server, tmp_path: Path
) -> None:
    folder = server.log.parent / "files"
    folder.mkdir(exist_ok=True)
    secret, public = folder / "secret.png", tmp_path / "public.png"
    scene_image(41).save(secret)
    scene_image(42).save(public)
    tenant = {"dao_id": "thief"}
    body = {"dao_id": "thief", "image_base64": encoded(public.read_bytes())}
    for name, path in (("a", secret), ("b", folder), ("c", f"{folder}/x/../secret.png")):
        http.post("/images", json={**body, "id": name, "image_path": str(path)})
        answer = http.get(f"/images/{name}/thumbnail", params=tenant)  # made from the upload
        assert answer.status_code == 200
        shown = np.asarray(Image.open(io.BytesIO(answer.content)), np.float32)
        wanted = np.asarray(Image.open(public).convert("RGB"), np.float32)
        assert np.abs(shown - wanted).mean() < 4
    messages = set()
    for path in (secret, folder / "missing.png", public, "/etc/passwd", "/nowhere"):
        http.post("/images", json={**body, "id": "d", "image_path": str(path)})
        for thumbnail in kept(server, "thief", "d"):
            thumbnail.unlink()
        gone = http.get("/images/d/thumbnail", params=tenant)
        assert (gone.status_code, gone.json()["code"]) == (404, "image_not_found")
        messages.add(gone.json()["error"])
    assert len(messages) == 1
