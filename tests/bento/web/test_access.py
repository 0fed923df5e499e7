"""Who is let in, what may be sent, and which headers say how an answer may be used."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from openai import AuthenticationError, OpenAI
from pydantic import ValidationError
from starlette.datastructures import Headers

from bento import Settings
from bento.contract.errors import EncoderError, ForeignPage, Unauthorized
from bento.settings import explain
from bento.web.access import Access, warning
from router_client import VisionEncoderClient, VisionEncoderUnauthorized
from tests.bento.web.test_service import logged
from tests.conftest import BUNDLED, ROOT, Server, file_bytes, scene_image, serving
from tests.router_client.router.test_router import routing

KEYS = ("first-k3y!", "second/k3y=")
LIMIT = 2_000_000
PAGE_OF_OURS = "https://pictures.example"
PICKLE = b"\x80\x04N."  # of None


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with two keys and little room."""
    with serving(
        tmp_path_factory.mktemp("locked"),
        API_KEY=",".join(KEYS),
        CORS_ALLOWED_ORIGINS=f"{PAGE_OF_OURS},http://localhost:3000",
        MAX_IMAGE_BYTES="1000000",
        MAX_REQUEST_BYTES=str(LIMIT),
        MAX_QUEUE_BYTES="4000000",
    ) as server:
        yield server


@pytest.fixture
def http(locked: Server) -> Iterator[httpx.Client]:
    """A client without a key."""
    with locked.client() as client:
        yield client


def key(value: str = KEYS[0]) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


Routes = list[tuple[str, str]]
PROBES = {"/livez", "/readyz", "/healthz"}
PAGES = {"/", "/ui", "/ui/app.js", "/docs", "/docs/start.js", "/openapi.json"}
PAGES |= {"/static_content/swagger-ui.css"}
BENTOML = {"/schema.json", "/docs.json"}
FORMS = {"/embed/image/upload", "/embed/images", "/search/upload"}


@pytest.fixture(scope="module")
def routes(locked: Server) -> Routes:
    """All that the service says it has, what BentoML adds, and what there is not."""
    described = httpx.get(f"{locked.url}/openapi.json", headers=key()).json()["paths"]
    for path in (*PAGES, *BENTOML, "/nowhere", "/images/a/b/c", "/ui/nothing"):
        described.setdefault(path, {"get": {}})
    return [
        (method.upper(), re.sub(r"\{\w+\}", "ffffffff", path))
        for path, item in described.items()
        for method in item
    ]


# Keys


def test_every_route_but_the_probes_needs_a_key(http: httpx.Client, routes: Routes) -> None:
    assert len(routes) > 35
    for method, path in routes:
        answer = http.request(method, path)
        if path in PROBES:
            assert answer.status_code == 200, path
            continue
        assert answer.status_code == 401, (method, path)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json().keys() == {"error", "code"}
        assert answer.json()["code"] == "unauthorized"
        assert "X-API-Key" in answer.json()["error"]
        # and with one it is answered, well or badly
        assert http.request(method, path, headers=key()).status_code not in (401, 403)
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"):
        assert http.request(method, "/nowhere").status_code == 401


def test_browsers_and_prometheus_are_told_what_makes_their_pages_public(http: httpx.Client) -> None:
    assert "METRICS_PUBLIC=true" in http.get("/metrics").json()["error"]
    for path in PAGES:
        assert "UI_PUBLIC=true" in http.get(path).json()["error"]
    assert "_PUBLIC" not in http.get("/info").json()["error"]


@pytest.mark.parametrize(
    "headers",
    [
        *({"Authorization": f"Bearer {one}"} for one in KEYS),
        *({"X-API-Key": one} for one in KEYS),
        {"authorization": f"bearer  {KEYS[0]}"},
        {"X-API-Key": KEYS[1], "Authorization": "Basic dTpw"},  # a proxy's
    ],
)
def test_each_key_is_taken_in_either_header(http: httpx.Client, headers: dict[str, str]) -> None:
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
def test_what_is_no_key_is_refused(http: httpx.Client, headers: dict[str, Any]) -> None:
    answer = http.post("/embed/text", json={"text": "a"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert http.get(f"/info?api_key={KEYS[0]}&token={KEYS[0]}").status_code == 401


def send(server: Server, head: str, body: bytes = b"", seconds: float = 20) -> socket.socket:
    """Begin a request by hand."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=seconds)
    connection.sendall(f"{head}\r\nHost: localhost\r\n\r\n".encode() + body)
    return connection


def status_of(connection: socket.socket) -> int:
    answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])


def test_no_key_is_answered_before_the_body_and_takes_no_room(
    http: httpx.Client, locked: Server
) -> None:
    head = "POST /embed/image HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: "
    uploads = [send(locked, f"{head}{LIMIT}") for _ in range(10)]  # five times what may be held
    uploads += [send(locked, f"{head}{LIMIT + 1}")]  # not even that it is too large is told
    try:
        assert [status_of(upload) for upload in uploads] == [401] * 11
        answer = http.post("/embed/text", json={"text": "a"}, headers=key())
        assert answer.status_code == 200, answer.text
    finally:
        for upload in uploads:
            upload.close()


def test_a_websocket_is_closed() -> None:
    from bento.web.middleware import RequestMiddleware

    sent: list[Any] = []

    async def app(*_: Any) -> None:
        raise AssertionError("reached")

    async def gather(message: Any) -> None:
        sent.append(message)

    options: dict[str, Any] = {"json_routes": frozenset(), "form_routes": frozenset()}
    options |= {"max_body_bytes": 1, "max_requests": 1, "budget": None, "metrics": None}
    middleware = RequestMiddleware(app, access=Access(Settings()), **options)
    asyncio.run(middleware({"type": "websocket"}, None, gather))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close"}]


def access(**settings: Any) -> Access:
    return Access(Settings(**settings))


def refusal(access: Access, method: str, path: str, **headers: str) -> type[EncoderError] | None:
    try:
        given = Headers({name.replace("_", "-"): value for name, value in headers.items()})
        access.check(method, path, given)
    except EncoderError as error:
        return type(error)
    return None


@pytest.mark.parametrize(("metrics", "ui"), [(False, False), (True, False), (False, True)])
def test_the_metrics_and_the_pages_are_public_each_by_its_setting(metrics: bool, ui: bool) -> None:
    guard = access(api_key="k", metrics_public=metrics, ui_public=ui)
    assert (refusal(guard, "GET", "/metrics") is None) == metrics
    for path in PAGES:
        assert (refusal(guard, "GET", path) is None) == ui, path
    for path in ("/ui2", "/metrics/", *BENTOML, "/images/ui/", "/docsx", "/health", "/info"):
        assert refusal(guard, "GET", path) is Unauthorized, path


@pytest.mark.parametrize(
    "given",
    [
        *("s3cret,", ",s3cret", "s3cret,,b", ",", " ", "s3cret key", "s3cret ", "a, s3cret"),
        *("s3cretключ", "s3c\tret", "s3cret\n", "s3c\x7fret"),
    ],
)
def test_a_key_that_no_header_can_carry_is_refused_at_start(given: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(api_key=given)
    said = explain(caught.value)
    assert said.startswith("API_KEY: one key or several with commas between are needed")
    assert "s3c" not in said + str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        *("*", "null", "pictures.example", "https://", "https://a/", "https://a/b", "HTTPS://A"),
        *("https://*.a", "https://a, https://b", "https://a,", "https://u@a", "ftp://a"),
    ],
)
def test_an_origin_that_is_none_is_refused_at_start(given: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(cors_allowed_origins=given)
    assert f"CORS_ALLOWED_ORIGINS={given}: origins such as" in explain(caught.value)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"API_KEY": "s3cret "}, "API_KEY: one key"),
        ({"API_KEY": "s3cret", "MAX_BATCH_SIZE": "0"}, "MAX_BATCH_SIZE=0: "),
        ({"API_KEY": "s3cret", "MAX_IMAGE_BYTES": "64000000"}, "MAX_IMAGE_BYTES=64000000 and"),
    ],
)
def test_a_mistake_in_the_settings_is_a_sentence_without_the_key(
    variables: dict[str, str], says: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import service"],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"a variable is not valid: {says}")
    assert done.stderr.count("\n") == 1
    assert "s3cret" not in done.stderr + done.stdout


def test_a_key_is_nowhere_to_be_read(http: httpx.Client, locked: Server) -> None:
    settings = Settings(api_key="s3cret,other")
    assert "s3cret" not in repr(settings) + str(settings) + settings.model_dump_json()
    said = [http.get(path, headers=key()).text for path in ("/info", "/metrics", "/health")]
    for body in (b"{", b'{"text": 7}', json.dumps({"text": "a", "x": 1}).encode(), PICKLE):
        for media_type in ("application/json", "text/plain"):
            headers = {**key(), "Content-Type": media_type}
            said.append(http.post("/embed/text", content=body, headers=headers).text)
    said.append(http.post("/embed/text", headers=key("wr0ng-k3y")).text)
    last = http.get("/nowhere", headers={**key(), "X-Request-ID": "the-last"})
    said.append(last.text)
    logged(locked, request_id="the-last")  # the log is complete
    said.append(locked.log.read_text())
    assert not re.search("k3y", "".join(said))


# Without a key


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("127.0.0.1", "every program on this machine"),
        ("::1", "every program on this machine"),
        ("0.0.0.0", "everybody who reaches port 8001"),
        ("192.168.1.2", "everybody who reaches port 8001"),
        ("some-name", "everybody who reaches port 8001"),
    ],
)
def test_an_open_service_says_to_whom(host: str, says: str) -> None:
    said = warning(Settings(host=host))
    assert said is not None
    assert says in said and f"HOST={host}" in said and "API_KEY is not set" in said
    assert warning(Settings(host=host, api_key="k")) is None


def test_it_is_logged_once_at_start_where_there_is_no_key(locked: Server, server: Server) -> None:
    line = logged(server, level="WARNING")
    assert line["message"] == warning(Settings())
    assert "API_KEY" not in locked.log.read_text()


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://localhost:8001"}, True),
        ({"Origin": "http://localhost:8001", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "https://gpu.example", "Sec-Fetch-Site": "same-origin"}, True),  # a proxy's
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": PAGE_OF_OURS, "Sec-Fetch-Site": "cross-site"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://localhost:8001", "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "localhost:8001"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
    ],
)
def test_a_page_of_another_site_may_not_write_where_there_is_no_key(
    headers: dict[str, str], allowed: bool
) -> None:
    guard = access(cors_allowed_origins=PAGE_OF_OURS)
    for method in ("POST", "PATCH", "DELETE", "PUT"):
        found = refusal(guard, method, "/images/a", Host="localhost:8001", **headers)
        assert found is (None if allowed else ForeignPage)
    assert refusal(guard, "GET", "/ui", Host="localhost:8001", **headers) is None
    with_key = {**headers, **key("k"), "Host": "localhost:8001"}
    assert refusal(access(api_key="k"), "POST", "/search", **with_key) is None


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:8001", True),
        ("LOCALHOST", True),
        ("demo.localhost:80", True),
        ("127.0.0.1:8001", True),
        ("192.168.1.2", True),
        ("[::1]:8001", True),
        ("vision-encoder:8001", True),  # no name that anybody can register
        ("pictures.example", True),
        ("", True),
        ("evil.example:8001", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("pictures.example.evil.example", False),
        ("[::1", False),
    ],
)
def test_a_name_that_leads_here_is_refused_where_there_is_no_key(host: str, allowed: bool) -> None:
    guard = access(cors_allowed_origins=PAGE_OF_OURS)
    found = refusal(guard, "GET", "/collections/daarion_images/images", Host=host)
    assert found is (None if allowed else ForeignPage)
    assert refusal(guard, "GET", "/readyz", Host=host) is None
    everywhere = access(host="0.0.0.0")  # under which names, nobody has said
    assert refusal(everywhere, "GET", "/info", Host=host) is None
    assert refusal(access(api_key="k"), "GET", "/info", Host=host, X_API_Key="k") is None


def test_the_open_service_refuses_foreign_pages_in_our_shape(server: Server) -> None:
    url = f"{server.url}/collections/daarion_images/publish"
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        answer = httpx.post(url, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "foreign_page")
        assert "evil.example" in answer.json()["error"] and "API_KEY" in answer.json()["error"]


# Clients


def test_our_clients_send_the_first_of_several_keys(
    locked: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with VisionEncoderClient(locked.url) as client, pytest.raises(VisionEncoderUnauthorized) as no:
        client.embed_text("a")
    assert (no.value.status, no.value.code) == (401, "unauthorized")
    assert "API_KEY" in str(no.value)
    monkeypatch.setenv("API_KEY", ",".join(KEYS))
    with VisionEncoderClient(locked.url) as client:
        assert len(client.embed_text("a")) == 128
        assert client.health()["status"] == "healthy"
    scene_image(1).save("one.png")
    command = [str(Path(sys.executable).with_name("vision-rag"))]
    environment = {**os.environ, "VISION_ENCODER_URL": locked.url}
    for arguments in (["index", "one.png"], ["search", "a red circle"], ["stats"]):
        done = subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    without = {**environment, "API_KEY": "wr0ng"}
    done = subprocess.run([*command, "stats"], env=without, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not one of this service's" in done.stderr and "API_KEY" in done.stderr
    assert "Traceback" not in done.stderr and "wr0ng" not in done.stderr


def test_the_router_sends_it_and_says_when_it_is_not_taken(locked: Server) -> None:
    with routing(locked.url, API_KEY=",".join(KEYS)) as url:
        providers = httpx.get(f"{url}/providers").json()["providers"]
        assert [provider["healthy"] for provider in providers] == [True, True]
        body = {"mode": "vision_embed", "payload": {"operation": "embed_text", "text": "a"}}
        assert httpx.post(f"{url}/route", json=body, timeout=30).json()["ok"] is True
    with routing(locked.url, API_KEY="wr0ng") as url:
        providers = httpx.get(f"{url}/providers").json()["providers"]
        assert all("not one of this service's" in provider["error"] for provider in providers)


def test_openais_client_sends_its_key(locked: Server) -> None:
    with OpenAI(base_url=f"{locked.url}/v1", api_key=KEYS[1]) as client:
        answer = client.embeddings.create(model=BUNDLED, input="a red circle")
        assert len(answer.data[0].embedding) == 128
    with OpenAI(base_url=f"{locked.url}/v1", api_key="wr0ng") as client:
        with pytest.raises(AuthenticationError) as error:
            client.embeddings.create(model=BUNDLED, input="a red circle")
        assert "not one of this service's" in str(error.value.body)


def test_bentomls_client_sends_its_token(locked: Server) -> None:
    code = (
        "import bentoml, sys\n"
        "with bentoml.SyncHTTPClient(sys.argv[1], token=sys.argv[2]) as client:\n"
        "    print(len(client.embed_text({'text': 'a red circle'})['embedding']))\n"
    )
    command = [sys.executable, "-c", code, locked.url, KEYS[0]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "128\n"), done.stderr


# What may be sent

CODE = [
    "application/vnd.bentoml+pickle",
    "application/x-python-pickle",
    "application/octet-stream+pickle",
    "application/x-pickle; charset=utf-8",
    "application/java-archive",
    "text/plain",
]


@pytest.mark.parametrize("media_type", CODE)
def test_what_may_carry_code_is_refused_on_every_route(
    http: httpx.Client, routes: Routes, media_type: str
) -> None:
    headers = {**key(), "Content-Type": media_type}
    for method, path in routes:
        answer = http.request(method, path, content=PICKLE, headers=headers)
        assert answer.status_code == 415, (method, path)
        assert answer.json()["code"] == "unsupported_media_type"
    types = [("application/json", FORMS), ("multipart/form-data; boundary=x", set())]
    for other, wrong in types:  # each is taken by its own routes only
        for method, path in routes:
            if method == "POST" and (path in wrong or (not wrong and path not in FORMS)):
                headers = {**key(), "Content-Type": other}
                answer = http.request(method, path, content=PICKLE, headers=headers)
                assert answer.status_code == 415, (method, path)


@pytest.mark.parametrize("path", sorted(FORMS))
def test_so_it_is_in_a_part_of_a_form(http: httpx.Client, path: str) -> None:
    name = "files" if path == "/embed/images" else "file"
    picture = file_bytes(scene_image(1))
    for media_type in CODE:
        files = {name: ("a.png", picture, media_type)}
        answer = http.post(path, files=files, headers=key())
        if path == "/embed/images":  # each for itself
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
        *(("utf-8", 400), ('"UTF-8"', 400), ("utf8", 400)),  # for the field that is unknown
    ):
        headers = {"Content-Type": f"multipart/form-data; boundary=x; Charset={charset}"}
        answer = http.post(path, content=form, headers={**key(), **headers})
        assert answer.status_code == status, (charset, answer.text)
        assert status == 400 or "utf-8" in answer.json()["error"]


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
        status = 400 if "\0" in one else 200  # no id has a control character
        assert http.post("/images", json=body, headers=key()).status_code == status
    # beside the service, its store, its thumbnails and what is temporary, and above them
    for place in (ROOT, home, *home.iterdir(), Path(tempfile.gettempdir())):
        for folder in (place, *place.parents):
            assert not (folder / name).exists(), folder
    assert not [path for path in home.rglob("*") if name[:-4] in path.name]


# Limits


def test_every_route_has_a_limit_that_needs_no_length(locked: Server, routes: Routes) -> None:
    """A body that is announced, and one that is not, is refused before all of it has come."""
    for method, path in routes:
        media_type = "multipart/form-data; boundary=x" if path in FORMS else "application/json"
        head = (
            f"{method} {path} HTTP/1.1\r\nAuthorization: Bearer {KEYS[0]}\r\n"
            f"Content-Type: {media_type}\r\n"
        )
        with send(locked, f"{head}Content-Length: {LIMIT + 1}") as announced:
            assert status_of(announced) == 413, (method, path)
        # a part that never ends, of a picture or of white space
        begun = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        begun = begun if path in FORMS else b"  "
        body = b"%x\r\n%s\r\n" % (len(begun), begun)
        with send(locked, f"{head}Transfer-Encoding: chunked", body) as chunked:
            reads = method in ("POST", "PATCH") and not path.endswith("/publish")
            if reads:
                piece = b"%x\r\n%s\r\n" % (LIMIT + 1, b" " * (LIMIT + 1))
                chunked.sendall(piece)
            assert (status_of(chunked) == 413) == reads, (method, path)  # others read no body


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
        assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "*" not in policy
        assert "Server" not in headers
        assert not any("bentoml" in name for name in headers)


def test_pages_of_allowed_origins_may_call_and_no_other(http: httpx.Client, server: Server) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    for origin in (PAGE_OF_OURS, "http://localhost:3000"):
        preflight = http.options("/embed/text", headers={"Origin": origin, **asks})
        assert preflight.status_code == 200
        assert preflight.headers["Access-Control-Allow-Origin"] == origin
        assert "X-API-Key" in preflight.headers["Access-Control-Allow-Headers"]
        assert "Access-Control-Allow-Credentials" not in preflight.headers
        for headers in ({}, key()):  # errors can be read, too
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
