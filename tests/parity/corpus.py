"""The requests of the parity test, in order: valid, borderline and invalid, for every route."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from PIL import Image

from models.shapes.scenes import draw_scene, sample_scene

MODEL: Final = "local-dir:models/shapes"
_NPY: Final = {"Accept": "application/x-npy"}


@dataclass(frozen=True)
class Ask:
    """A named request; `given` holds further arguments of `httpx.Client.request`."""

    name: str
    method: str
    path: str
    given: dict[str, Any] = field(default_factory=dict)


def picture(seed: int, format: str = "PNG", mode: str = "RGB", side: int = 96) -> bytes:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    draw_scene(sample_scene(rng), rng, side).convert(mode).save(buffer, format)
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _turned() -> bytes:
    """Return a JPEG with an EXIF orientation of 90 degrees."""
    rng = np.random.default_rng(9)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    draw_scene(sample_scene(rng), rng, 96).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def _get(path: str, **given: Any) -> Ask:
    return Ask(f"GET {path} {json.dumps(given) if given else ''}".strip(), "GET", path, given)


def _post(name: str, path: str, body: Any, **headers: str) -> Ask:
    return Ask(f"POST {path}: {name}", "POST", path, {"json": body, "headers": headers})


def _raw(name: str, path: str, content: bytes, media_type: str) -> Ask:
    given = {"content": content, "headers": {"Content-Type": media_type}}
    return Ask(f"POST {path}: {name}", "POST", path, given)


def _form(name: str, path: str, files: Any = None, **fields: Any) -> Ask:
    headers = fields.pop("headers", {})
    return Ask(
        f"POST {path}: {name}",
        "POST",
        path,
        {"files": files or {}, "data": fields, "headers": headers},
    )


PNG: Final = picture(1)
CUT: Final = picture(2, "JPEG")[:500]

_PAGES: Final = [
    _get("/"),
    _get("/docs"),
    _get("/docs/start.js"),
    _get("/openapi.json"),
    _get("/schema.json"),
    _get("/info", headers={"Content-Type": "application/vnd.bentoml+pickle"}),
    _get("/health"),
    _get("/info"),
    _get("/livez"),
    _get("/readyz"),
    _get("/healthz"),
    _get("/ui"),
    _get("/ui/app.js"),
    _get("/ui/language.js"),
    _get("/ui/service.js"),
    _get("/ui/texts.js"),
    _get("/ui/style.css"),
    _get("/ui/no-such.js"),
    _get("/no-such-route"),
    _get("/embed/text"),
    Ask("PUT /health", "PUT", "/health"),
    Ask("HEAD /health", "HEAD", "/health"),
    Ask("OPTIONS /embed/text", "OPTIONS", "/embed/text"),
]
_TEXTS: Final = [
    _post("a text", "/embed/text", {"text": "a red circle"}),
    _post("a Ukrainian text", "/embed/text", {"text": "червоне коло зліва від синього квадрата"}),
    _post("not normalised", "/embed/text", {"text": "a red circle", "normalize": False}),
    _post("as an array", "/embed/text", {"text": "a red circle"}, **_NPY),
    _post("longer than the context", "/embed/text", {"text": "a red circle and " * 200}),
    _post("with white space", "/embed/text", {"text": "  a red circle\n"}),
    _post("odd letters", "/embed/text", {"text": "🟥 é \u0000 ﷽"}),
    _post("empty", "/embed/text", {"text": "  "}),
    _post("too long", "/embed/text", {"text": "a" * 10_001}),
    _post("no text", "/embed/text", {}),
    _post("a number", "/embed/text", {"text": 7}),
    _post("an unknown field", "/embed/text", {"text": "a", "normalise": True}),
    _post("a list", "/embed/text", ["a"]),
    _raw("not JSON", "/embed/text", b"{'text': 1}", "application/json"),
    _raw("not UTF-8", "/embed/text", b'{"text": "\xff"}', "application/json"),
    _raw("a form", "/embed/text", b"text=a", "application/x-www-form-urlencoded"),
    _raw("a pickle", "/embed/text", b"\x80\x04N.", "application/vnd.bentoml+pickle"),
    _raw("nothing", "/embed/text", b"", "application/json"),
    _post("a few", "/embed/texts", {"texts": ["a red circle", "синій квадрат", "a star"]}),
    _post("as an array", "/embed/texts", {"texts": ["a", "two stars"]}, **_NPY),
    _post("more than a batch", "/embed/texts", {"texts": [f"{n} red circles" for n in range(70)]}),
    _post("none", "/embed/texts", {"texts": []}),
    _post("one of them empty", "/embed/texts", {"texts": ["a", ""]}),
    _post("too many", "/embed/texts", {"texts": ["a"] * 1001}),
]
_IMAGES: Final = [
    _post("PNG", "/embed/image", {"image_base64": _base64(PNG)}),
    _post("JPEG", "/embed/image", {"image_base64": _base64(picture(1, "JPEG"))}),
    _post("data URI", "/embed/image", {"image_base64": f"data:image/png;base64,{_base64(PNG)}"}),
    _post("not normalised", "/embed/image", {"image_base64": _base64(PNG), "normalize": False}),
    _post("no base64", "/embed/image", {"image_base64": "%%%"}),
    _post("no picture", "/embed/image", {"image_base64": _base64(b"no picture")}),
    _post("cut off", "/embed/image", {"image_base64": _base64(CUT)}),
    _post("a URL", "/embed/image", {"image_url": "http://127.0.0.1/a.png"}),
    _post("both", "/embed/image", {"image_url": "http://a", "image_base64": "YQ=="}),
    _post("neither", "/embed/image", {}),
    _form("PNG", "/embed/image/upload", {"file": ("a.png", PNG)}),
    _form("not normalised", "/embed/image/upload", {"file": ("a.png", PNG)}, normalize="false"),
    _form("as an array", "/embed/image/upload", {"file": ("a.png", PNG)}, headers=_NPY),
    _form("WebP", "/embed/image/upload", {"file": ("a", picture(3, "WEBP"))}),
    _form("GIF", "/embed/image/upload", {"file": ("a", picture(3, "GIF", "P"))}),
    _form("CMYK", "/embed/image/upload", {"file": ("a", picture(3, "JPEG", "CMYK"))}),
    _form("transparent", "/embed/image/upload", {"file": ("a", picture(3, "PNG", "RGBA"))}),
    _form("16 bits", "/embed/image/upload", {"file": ("a", picture(3, "PNG", "I;16"))}),
    _form("turned", "/embed/image/upload", {"file": ("a.jpg", _turned())}),
    _form("one pixel", "/embed/image/upload", {"file": ("a", picture(3, side=1))}),
    _form("cut off", "/embed/image/upload", {"file": ("a.jpg", CUT)}),
    _form("empty", "/embed/image/upload", {"file": ("a.jpg", b"")}),
    _form("a pickle", "/embed/image/upload", {"file": ("a", PNG, "application/x-pickle")}),
    _form("another field", "/embed/image/upload", {"image": ("a.png", PNG)}),
    _form("not a boolean", "/embed/image/upload", {"file": ("a.png", PNG)}, normalize="maybe"),
    _raw("no form", "/embed/image/upload", PNG, "image/png"),
    _raw("a broken form", "/embed/image/upload", b"--x\r\n", "multipart/form-data; boundary=x"),
    _form(
        "good and bad",
        "/embed/images",
        [("files", ("a", PNG)), ("files", ("b", b"no")), ("files", ("c", picture(4)))],
    ),
    _form(
        "as an array",
        "/embed/images",
        [("files", ("a", PNG)), ("files", ("b", CUT))],
        headers=_NPY,
    ),
    _form("more than a batch", "/embed/images", [("files", ("a", picture(5)))] * 40),
    _form("none", "/embed/images", {"other": ("a", PNG)}),
    _post(
        "ranked",
        "/rank",
        {"image": {"image_base64": _base64(PNG)}, "texts": ["a red circle", "a blue star"]},
    ),
    _post("nothing to rank", "/rank", {"image": {"image_base64": _base64(PNG)}, "texts": []}),
]
_OPENAI: Final = [
    _post("a text", "/v1/embeddings", {"model": MODEL, "input": "a red circle"}),
    _post(
        "base64", "/v1/embeddings", {"model": MODEL, "input": ["a"], "encoding_format": "base64"}
    ),
    _post("shortened", "/v1/embeddings", {"model": MODEL, "input": ["a", "b"], "dimensions": 32}),
    _post(
        "a picture",
        "/v1/embeddings",
        {"model": f"{MODEL}/local", "input": ["a", f"data:image/png;base64,{_base64(PNG)}"]},
    ),
    _post("another model", "/v1/embeddings", {"model": "gpt", "input": "a"}),
    _post("too wide", "/v1/embeddings", {"model": MODEL, "input": "a", "dimensions": 4096}),
    _post("no input", "/v1/embeddings", {"model": MODEL, "input": []}),
]


def _indexed(id: str, seed: int, **more: Any) -> Ask:
    body = {"id": id, "image_base64": _base64(picture(seed)), "dao_id": "dao", **more}
    return _post(f"{id} {json.dumps(more)}", "/images", body)


def _search(name: str, **body: Any) -> Ask:
    return _post(name, "/search", {"dao_id": "dao", **body})


_RED: Final = {"title": "Red", "tags": ["a", "b"], "category": "x"}
_HERE: Final = {"params": {"dao_id": "dao"}}
_INDEX: Final = [
    _get("/collections/daarion_images"),
    _search("in an empty collection", text="a red circle"),
    _indexed("one", 11, image_path="one.png", metadata=_RED),
    _indexed("two", 12, image_path="two.png", metadata={"tags": ["b"], "n": 2, "category": "y"}),
    _indexed("three", 13, image_path="три.png", metadata={"n": 3, "category": "x"}),
    _indexed("a/b c", 14),
    _indexed("one", 11, image_path="one.png", metadata=_RED, duplicates=[]),
    _indexed("two", 12, image_path="moved.png", metadata={"tags": ["b"]}),
    _indexed("", 12),
    _post("no picture", "/images", {"id": "x", "image_base64": _base64(b"no")}),
    _post("no source", "/images", {"id": "x"}),
    _search("by text", text="a red circle"),
    _search("in Ukrainian", text="червоне коло", top_k=2),
    _search("in English", text="a red circle", language="en"),
    _search("by a picture", image={"image_base64": _base64(picture(13))}),
    _search("by an id", image={"id": "one"}),
    _search(
        "composed",
        text=["a red circle", "a star"],
        image={"id": "two"},
        weights=[0.5, 0.2, 1.0],
        negative={"text": "a blue square"},
    ),
    _search("filtered", text="a", filter={"must": [{"key": "tags", "match": {"any": ["a"]}}]}),
    _search(
        "filtered twice",
        text="a",
        filter={
            "must": [{"key": "n", "range": {"gte": 2}}],
            "must_not": [{"key": "category", "match": {"value": "y"}}],
        },
    ),
    _search("paged", text="a", top_k=1, offset=1),
    _search("with a threshold", text="a", score_threshold=0.99),
    _search("grouped", text="a", group_by="category", group_size=2),
    _search("diverse", text="a", diversity=0.7, top_k=3),
    _post("every tenant's", "/search", {"text": "a"}),
    _post("another tenant's", "/search", {"text": "a", "dao_id": "other"}),
    _search("an unknown filter", text="a", filter={"must": [{"key": "a", "like": 1}]}),
    _search("an unknown collection", text="a", collection="never"),
    _search("an unknown id", image={"id": "never"}),
    _search("for nothing"),
    _search("too many", text="a", top_k=1001),
    _post(
        "good and bad",
        "/search/batch",
        {"searches": [{"text": "a", "dao_id": "dao"}, {"top_k": 3}, {"text": "b"}]},
    ),
    _post("none", "/search/batch", {"searches": []}),
    _form("a picture", "/search/upload", {"file": ("q.png", picture(12))}, search='{"top_k": 2}'),
    _form("no JSON", "/search/upload", {"file": ("q.png", picture(12))}, search="top_k"),
    _form("no file", "/search/upload", {"other": ("q.png", picture(12))}),
    _get("/images/one/thumbnail", **_HERE),
    _get("/images/a%2Fb%20c/thumbnail", **_HERE),
    _get("/images/never/thumbnail", **_HERE),
    _get("/images/..%2F..%2Fetc/thumbnail", **_HERE),
    _get("/collections/daarion_images/images"),
    _get("/collections/daarion_images/images", params={"limit": 2}),
    _get("/collections/daarion_images/images", params={"limit": "x"}),
    _get("/collections/never"),
    _get("/collections/never/images"),
    Ask(
        "PATCH /images/one",
        "PATCH",
        "/images/one",
        {**_HERE, "json": {"metadata": {"title": "Redder"}}},
    ),
    Ask("PATCH /images/never", "PATCH", "/images/never", {**_HERE, "json": {"paths": ["a"]}}),
    Ask("PATCH /images/one: no object", "PATCH", "/images/one", {**_HERE, "json": [1]}),
    _search("after a change", text="a red circle", top_k=2),
    Ask("DELETE /images/two", "DELETE", "/images/two", _HERE),
    Ask("DELETE /images/two again", "DELETE", "/images/two", _HERE),
    Ask("POST publish", "POST", "/collections/daarion_images/publish"),
    Ask("DELETE a generation", "DELETE", "/collections/daarion_images/generations/ffffffff"),
    Ask("DELETE no generation", "DELETE", "/collections/daarion_images/generations/x"),
    _get("/collections/daarion_images"),
    _get("/metrics"),
]

CORPUS: Final = [*_PAGES, *_TEXTS, *_IMAGES, *_OPENAI, *_INDEX]
