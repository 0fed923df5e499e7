"""A service with keys: which requests it accepts, and which headers its answers carry."""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from bento import Settings
from tests.support.bento.access import BENTOML, KEYS, LIMIT, PAGE_OF_OURS, PAGES, key
from tests.support.bento.problems import problem
from tests.support.bento.sockets import send, status_of
from tests.support.paths import ROOT
from tests.support.pictures import file_bytes, scene_image
from tests.support.serving import Server, logged

pytestmark = pytest.mark.service

PICKLE = b"\x80\x04N."  # None


@pytest.fixture
def http(locked: Server) -> Iterator[httpx.Client]:
    """Open a client without a key."""
    with locked.client() as client:
        yield client


Routes = list[tuple[str, str]]
PROBES = {"/livez", "/readyz", "/healthz"}
FORMS = {"/embed/image/upload", "/embed/images", "/search/upload"}


@pytest.fixture(scope="module")
def routes(locked: Server) -> Routes:
    """Return the documented routes, those that BentoML adds, and some that do not exist."""
    described = httpx.get(f"{locked.url}/openapi.json", headers=key()).json()["paths"]
    for path in (*PAGES, *BENTOML, "/nowhere", "/images/a/b/c", "/ui/nothing"):
        described.setdefault(path, {"get": {}})
    return [
        (method.upper(), re.sub(r"\{\w+\}", "ffffffff", path))
        for path, item in described.items()
        for method in item
    ]


# Keys


def test_every_route_except_the_probes_needs_a_key(http: httpx.Client, routes: Routes) -> None:
    assert len(routes) > 35
    for method, path in routes:
        answer = http.request(method, path)
        if path in PROBES:
            assert answer.status_code == 200, path
            continue
        assert answer.status_code == 401, (method, path)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.headers["Content-Type"] == "application/json"
        assert problem(answer)[0] == "unauthorized"
        assert http.request(method, path, headers=key()).status_code not in (401, 403)
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"):
        assert http.request(method, "/nowhere").status_code == 401


def test_an_error_names_the_setting_that_makes_its_route_public(http: httpx.Client) -> None:
    assert "METRICS_PUBLIC=true" in http.get("/metrics").json()["error"]
    assert PAGES
    for path in PAGES:
        assert "UI_PUBLIC=true" in http.get(path).json()["error"]
    assert "_PUBLIC" not in http.get("/info").json()["error"]


@pytest.mark.parametrize(
    "headers",
    [
        *({"Authorization": f"Bearer {one}"} for one in KEYS),
        *({"X-API-Key": one} for one in KEYS),
        {"authorization": f"bearer  {KEYS[0]}"},
        {"X-API-Key": KEYS[1], "Authorization": "Basic dTpw"},  # from a proxy
    ],
)
def test_each_key_works_in_either_header(http: httpx.Client, headers: dict[str, str]) -> None:
    answer = http.post("/embed/text", json={"text": "a"}, headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEYS[0][:-1]}"},
        {"Authorization": f"Bearer {KEYS[0]}x"},
        {"Authorization": f"Bearer {KEYS[0].upper()}"},
        {"Authorization": f"Bearer {','.join(KEYS)}"},
        {"Authorization": f"Bearer{KEYS[0]}"},
        {"Authorization": f"Basic {KEYS[0]}"},
        {"Authorization": KEYS[0]},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer ключ".encode()},
        {"Authorization": "Bearer \udcff".encode(errors="surrogateescape")},
        {"X-API-Key": ""},
        {"X-API-Key": ","},
        {"X-API-Key": f"Bearer {KEYS[0]}"},
        {"X-API-Key": "x" * 5000},
        {"Cookie": f"API_KEY={KEYS[0]}"},
    ],
)
def test_a_wrong_key_is_rejected(http: httpx.Client, headers: dict[str, Any]) -> None:
    answer = http.post("/embed/text", json={"text": "a"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert http.get(f"/info?api_key={KEYS[0]}&token={KEYS[0]}").status_code == 401


def test_a_request_without_a_key_is_rejected_before_its_body(
    http: httpx.Client, locked: Server
) -> None:
    head = "POST /embed/image HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: "
    uploads = [send(locked, f"{head}{LIMIT}") for _ in range(10)]  # five times MAX_QUEUE_BYTES
    uploads += [send(locked, f"{head}{LIMIT + 1}")]  # 401, although it is too large
    try:
        assert [status_of(upload) for upload in uploads] == [401] * 11
        answer = http.post("/embed/text", json={"text": "a"}, headers=key())
        assert answer.status_code == 200, answer.text
    finally:
        for upload in uploads:
            upload.close()


def test_a_key_appears_in_no_answer_and_no_log(http: httpx.Client, locked: Server) -> None:
    settings = Settings(api_key="s3cret,other")
    assert "s3cret" not in repr(settings) + str(settings) + settings.model_dump_json()
    texts = [http.get(path, headers=key()).text for path in ("/info", "/metrics", "/health")]
    for body in (b"{", b'{"text": 7}', json.dumps({"text": "a", "x": 1}).encode(), PICKLE):
        for media_type in ("application/json", "text/plain"):
            headers = {**key(), "Content-Type": media_type}
            texts.append(http.post("/embed/text", content=body, headers=headers).text)
    texts.append(http.post("/embed/text", headers=key("wr0ng-k3y")).text)
    last = http.get("/nowhere", headers={**key(), "X-Request-ID": "the-last"})
    texts.append(last.text)
    logged(locked, request_id="the-last")  # the log is complete
    texts.append(locked.log.read_text())
    assert "k3y" not in "".join(texts)


# Content types


CODE = [
    "application/vnd.bentoml+pickle",
    "application/x-python-pickle",
    "application/octet-stream+pickle",
    "application/x-pickle; charset=utf-8",
    "application/java-archive",
    "text/plain",
]


@pytest.mark.parametrize("media_type", CODE)
def test_content_types_that_can_carry_code_are_rejected_on_every_route(
    http: httpx.Client, routes: Routes, media_type: str
) -> None:
    headers = {**key(), "Content-Type": media_type}
    for method, path in routes:
        answer = http.request(method, path, content=PICKLE, headers=headers)
        assert answer.status_code == 415, (method, path)
        assert problem(answer)[0] == "unsupported_media_type"
    types = [("application/json", FORMS), ("multipart/form-data; boundary=x", set())]
    for other, wrong in types:  # a route accepts only one of the two types
        for method, path in routes:
            if method == "POST" and (path in wrong or (not wrong and path not in FORMS)):
                headers = {**key(), "Content-Type": other}
                answer = http.request(method, path, content=PICKLE, headers=headers)
                assert answer.status_code == 415, (method, path)


@pytest.mark.parametrize("path", sorted(FORMS))
def test_a_form_part_of_another_type_is_rejected(http: httpx.Client, path: str) -> None:
    name = "files" if path == "/embed/images" else "file"
    picture = file_bytes(scene_image(1))
    for media_type in CODE:
        files = {name: ("a.png", picture, media_type)}
        answer = http.post(path, files=files, headers=key())
        if path == "/embed/images":  # one error for each file
            (error,) = answer.json()["errors"]
            assert answer.json()["embeddings"] == [None], media_type
        else:
            error = answer.json()
            assert answer.status_code == 415, media_type
        assert error["code"] == "unsupported_media_type"
        assert "application/octet-stream" in error["error"]
    for media_type in ("image/png", "image/whatever", "application/octet-stream"):
        files = {name: ("a.png", picture, media_type)}
        assert http.post(path, files=files, headers=key()).status_code == 200, media_type


@pytest.mark.parametrize("path", sorted(FORMS))
def test_a_form_is_utf_8(http: httpx.Client, path: str) -> None:
    name = "files" if path == "/embed/images" else "file"
    form = (
        f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n'.encode()
        + file_bytes(scene_image(1))
        + b"\r\n--x\r\n"
        + b'Content-Disposition: form-data; name="\\ud800"\r\n\r\n1\r\n--x--\r\n'
    )
    for charset, status in (
        *(("undefined", 415), ("Punycode", 415), ("unicode_escape", 415), ('"utf-7"', 415)),
        *(("utf-8", 400), ('"UTF-8"', 400), ("utf8", 400)),  # the unknown field is rejected
    ):
        headers = {"Content-Type": f"multipart/form-data; boundary=x; Charset={charset}"}
        answer = http.post(path, content=form, headers={**key(), **headers})
        assert answer.status_code == status, (charset, answer.text)


def test_the_name_of_an_upload_is_never_a_path(http: httpx.Client, locked: Server) -> None:
    home = locked.log.parent
    name = f"{uuid4()}.png"
    names = (name, f"../{name}", f"../../{name}", f"{home}/{name}", f"..\\{name}", f"{name}\0.png")
    picture = file_bytes(scene_image(2))
    encoded = base64.b64encode(picture).decode()
    for one in names:
        for path in sorted(FORMS):
            files = {"files" if path == "/embed/images" else "file": (one, picture)}
            assert http.post(path, files=files, headers=key()).status_code == 200
        body = {"id": one, "image_path": one, "collection": "names", "image_base64": encoded}
        status = 400 if "\0" in one else 200  # ids cannot contain control characters
        assert http.post("/images", json=body, headers=key()).status_code == status
    # search the folders of the service, its store and temporary files, and all their parents
    for place in (ROOT, home, *home.iterdir(), Path(tempfile.gettempdir())):
        for folder in (place, *place.parents):
            assert not (folder / name).exists(), folder
    assert not [path for path in home.rglob("*") if name[:-4] in path.name]


# Limits


def test_every_route_limits_bodies_with_and_without_a_length(
    locked: Server, routes: Routes
) -> None:
    """Bodies with and without Content-Length are rejected before they are complete."""
    for method, path in routes:
        media_type = "multipart/form-data; boundary=x" if path in FORMS else "application/json"
        head = (
            f"{method} {path} HTTP/1.1\r\nAuthorization: Bearer {KEYS[0]}\r\n"
            f"Content-Type: {media_type}\r\n"
        )
        with send(locked, f"{head}Content-Length: {LIMIT + 1}") as announced:
            assert status_of(announced) == 413, (method, path)
        # a part that never ends: a picture, or white space
        begun = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        begun = begun if path in FORMS else b"  "
        body = b"%x\r\n%s\r\n" % (len(begun), begun)
        with send(locked, f"{head}Transfer-Encoding: chunked", body) as chunked:
            reads = method in ("POST", "PATCH") and not path.endswith("/publish")
            if reads:
                piece = b"%x\r\n%s\r\n" % (LIMIT + 1, b" " * (LIMIT + 1))
                chunked.sendall(piece)
            assert (status_of(chunked) == 413) == reads, (method, path)  # other routes read no body


# Headers


def test_every_answer_has_the_security_headers_and_no_banner(
    http: httpx.Client, routes: Routes
) -> None:
    preflight = {"Origin": PAGE_OF_OURS, "Access-Control-Request-Method": "POST"}
    answers = [http.options("/embed/text", headers=preflight)]
    for method, path in routes:
        answers += [http.request(method, path), http.request(method, path, headers=key())]
    answers.append(http.post("/embed/text", json={"text": "a"}, headers=key()))
    assert {answer.status_code for answer in answers} >= {200, 307, 400, 401, 404, 415}
    for answer in answers:
        headers = answer.headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert "Server" not in headers
        assert not any("bentoml" in name for name in headers)


def test_only_pages_of_allowed_origins_may_call(http: httpx.Client, server: Server) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    for origin in (PAGE_OF_OURS, "http://localhost:3000"):
        preflight = http.options("/embed/text", headers={"Origin": origin, **asks})
        assert preflight.status_code == 200
        assert preflight.headers["Access-Control-Allow-Origin"] == origin
        assert "X-API-Key" in preflight.headers["Access-Control-Allow-Headers"]
        assert "Access-Control-Allow-Credentials" not in preflight.headers
        for headers in ({}, key()):  # pages can read errors, too
            answer = http.get("/info", headers={"Origin": origin, **headers})
            assert answer.status_code == (200 if headers else 401)
            assert answer.headers["Access-Control-Allow-Origin"] == origin
    for origin in ("https://evil.example", f"{PAGE_OF_OURS}.evil.example", "null"):
        headers = {"Origin": origin, **asks}
        refused = http.options("/embed/text", headers=headers)
        assert "Access-Control-Allow-Origin" not in refused.headers
        answer = http.get("/info", headers={"Origin": origin, **key()})
        assert "Access-Control-Allow-Origin" not in answer.headers
    closed = httpx.options(f"{server.url}/info", headers={"Origin": PAGE_OF_OURS, **asks})
    assert not any(name.startswith("access-control") for name in closed.headers)
