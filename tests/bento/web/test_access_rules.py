"""The rules of access with and without a key, and the clients that send one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AuthenticationError, OpenAI
from pydantic import ValidationError
from starlette.datastructures import Headers

from bento import Settings
from bento.contract.errors import EncoderError, ForeignPage, Unauthorized, describe
from bento.web.access import Access, warning
from router_client import VisionEncoderClient, VisionEncoderUnauthorized
from tests.support.bento.access import BENTOML, KEYS, PAGE_OF_OURS, PAGES, key
from tests.support.paths import BUNDLED, ROOT
from tests.support.pictures import scene_image
from tests.support.router_client.routing import routing
from tests.support.serving import Server, logged


def test_a_websocket_is_closed() -> None:
    from bento.web.middleware import RequestMiddleware

    sent: list[Any] = []

    async def app(*_: Any) -> None:
        raise AssertionError("reached")

    async def gather(message: Any) -> None:
        sent.append(message)

    options: dict[str, Any] = {"budget": None, "metrics": None}
    options |= {"max_body_bytes": 1, "max_requests": 1}
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
    said = describe(caught.value)
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
    assert f"CORS_ALLOWED_ORIGINS={given}: origins such as" in describe(caught.value)


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
        assert client.health().status == "healthy"
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
