"""The reference router as a process, in front of the service as a process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bento import Encoder
from router_client import VisionEncoderClient
from tests.support.paths import ROOT
from tests.support.pictures import file_bytes, scene_image
from tests.support.router_client.routing import routing
from tests.support.serving import Server, free_port
from tests.support.wire import answer, wire


@pytest.fixture(scope="module")
def router(server: Server) -> Iterator[str]:
    with VisionEncoderClient(server.url) as client:
        for seed in range(8):
            client.index_image(
                f"r{seed}",
                file_bytes(scene_image(seed)),
                dao_id="routed",
                image_path=f"/pictures/{seed}.png",
            )
    with routing(server.url) as url:
        yield url


def route(url: str, **request: Any) -> httpx.Response:
    return httpx.post(f"{url}/route", json=request, timeout=60)


def test_both_modes_are_answered_by_their_providers(
    router: str, encoder: Encoder, tmp_path: Path
) -> None:
    payload = {"operation": "embed_text", "text": "a star"}
    body = route(router, mode="vision_embed", agent="helios", payload=payload).json()
    assert body["ok"] is True
    assert (body["provider_id"], body["metadata"]["rule"]) == ("vision_encoder", "vision_embed")
    expected = encoder.encode_texts(["a star"])[0]
    assert body["data"]["embedding"] == pytest.approx(expected, abs=1e-5)

    asked = {"mode": "image_search", "dao_id": "routed", "session_id": "s", "unknown": 1}
    body = route(router, **asked, message="жовта зірка", payload={"top_k": 3}).json()
    assert (body["provider_id"], body["metadata"]["rule"]) == ("vision_rag", "image_search")
    assert body["data"].keys() == {"success", "count", "images", "formatted_text"}
    assert body["data"]["count"] == len(body["data"]["images"]) == 3
    assert body["data"]["formatted_text"].startswith("Знайдено 3 зображення:")

    (tmp_path / "query.png").write_bytes(file_bytes(scene_image(5)))
    body = route(router, **asked, payload={"image_path": str(tmp_path / "query.png")}).json()
    best = body["data"]["images"][0]
    assert (best["id"], best["path"]) == ("r5", "/pictures/5.png")
    assert body["data"]["count"] == 5  # IMAGE_SEARCH_DEFAULT_TOP_K
    assert body["error"] is None


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"{", 400, "Invalid JSON"),
        (b"[]", 400, "Input should be an object"),
        (b"{}", 400, "mode: is required"),
        (b'{"mode": ""}', 400, "mode: "),
        (b'{"mode": "a", "payload": [1]}', 400, "payload: "),
        (b'{"mode": "image_search", "dao_id": ""}', 400, "dao_id: String should have at least 1"),
        (b'{"mode": "\xff"}', 400, "Invalid JSON"),
        (b'{"mode": "chat"}', 404, "no rule is for mode 'chat'; the modes of the rules are image_"),
        (b" " * 30_000_001, 413, "30,000,000 bytes"),
    ],
)
def test_what_cannot_be_routed_is_a_sentence(
    router: str, content: bytes, status: int, said: str
) -> None:
    response = httpx.post(f"{router}/route", content=content, timeout=60)
    assert response.status_code == status
    body = response.json()
    assert body.keys() == {"ok", "provider_id", "data", "error", "metadata"}
    assert (body["ok"], body["provider_id"]) == (False, None)
    assert said in body["error"]


def test_another_route_is_told_which_there_are(router: str) -> None:
    for method, path, status in (("GET", "/", 404), ("GET", "/route", 405)):
        response = httpx.request(method, router + path)
        assert response.status_code == status
        assert "POST /route, GET /health, GET /providers" in response.json()["error"]


def test_the_providers_are_listed_with_their_rules(router: str, server: Server) -> None:
    listed = httpx.get(f"{router}/providers").json()["providers"]
    assert [(p["id"], p["base_url"], p["healthy"], p["error"]) for p in listed] == [
        ("vision_encoder", server.url, True, None),
        ("vision_rag", server.url, True, None),
    ]
    assert [rule["id"] for p in listed for rule in p["rules"]] == ["vision_embed", "image_search"]


def test_64_at_once_are_all_answered(router: str, encoder: Encoder) -> None:
    texts = [f"{n} red stars" for n in range(64)]
    expected = encoder.encode_texts(texts)

    async def one(client: httpx.AsyncClient, i: int) -> None:
        payload = {"operation": "embed_text", "text": texts[i]}
        found, embedded = await asyncio.gather(
            client.post(
                "/route", json={"mode": "image_search", "message": texts[i], "dao_id": "routed"}
            ),
            client.post("/route", json={"mode": "vision_embed", "payload": payload}),
        )
        assert found.json()["ok"], found.text
        assert found.json()["data"]["count"] == 5
        assert embedded.json()["ok"], embedded.text
        assert embedded.json()["data"]["embedding"] == pytest.approx(expected[i], abs=1e-5)

    async def all_of_them() -> None:
        async with httpx.AsyncClient(base_url=router, timeout=60) as client:
            for _ in range(3):
                await asyncio.gather(*(one(client, i) for i in range(64)))

    asyncio.run(all_of_them())


def test_a_router_whose_encoder_is_away_says_so_and_lives() -> None:
    away = f"http://127.0.0.1:{free_port()}"
    with routing(away) as url:
        assert httpx.get(f"{url}/health").json()["status"] == "healthy"
        listed = httpx.get(f"{url}/providers").json()["providers"]
        assert [p["healthy"] for p in listed] == [False, False]
        assert f"no vision encoder answers at {away}" in listed[0]["error"]
        response = route(url, mode="image_search", message="a cat")
        assert response.status_code == 200
        body = response.json()
        assert (body["ok"], body["provider_id"]) == (False, "vision_rag")
        assert body["metadata"]["code"] == "unreachable"
        assert body["data"]["formatted_text"].startswith("Image search failed: no vision encoder")


def test_a_proxy_in_place_of_the_encoder_is_told_apart() -> None:
    page = answer(200, "<html>Sign in</html>", media_type="text/html")
    with wire(page) as told, routing(told.url) as url:
        payload = {"operation": "embed_text", "text": "a"}
        body = route(url, mode="vision_embed", payload=payload).json()
    assert (body["ok"], body["metadata"]["code"]) == (False, "bad_answer")
    assert "Sign in" in body["error"]


@pytest.mark.parametrize("value", ["NaN", "1e999", '"\\ud800"'])
def test_an_answer_that_is_no_json_is_a_failed_one(value: str) -> None:
    with wire(answer(200, f'{{"embedding": [{value}]}}')) as told, routing(told.url) as url:
        payload = {"operation": "embed_text", "text": "a"}
        response = route(url, mode="vision_embed", payload=payload)
    assert response.status_code == 200
    assert (response.json()["ok"], response.json()["provider_id"]) == (False, "vision_encoder")
    assert "cannot be written as JSON" in response.json()["error"]


def test_many_large_requests_do_not_take_all_memory(router: str) -> None:
    port = router.rpartition(":")[2]
    # a process of another test may end while this looks at it: its cmdline is None then
    (process,) = [p for p in psutil.process_iter(["cmdline"]) if port in (p.info["cmdline"] or ())]
    before = process.memory_info().rss
    body = json.dumps({"mode": "chat", "payload": {"image_base64": "A" * 28_000_000}}).encode()

    def send(_: int) -> int:
        return httpx.post(f"{router}/route", content=body, timeout=120).status_code

    with ThreadPoolExecutor(12) as threads:
        assert set(threads.map(send, range(12))) == {404}
    assert process.memory_info().rss - before < 400_000_000


def test_rules_of_ones_own_are_used(server: Server, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(
        "rules: [{id: all, priority: 1, when: {agent: [helios]}, use_provider: vision_encoder}]"
    )
    with routing(server.url, "--config", str(rules)) as url:
        payload = {"operation": "embed_text", "text": "a"}
        asked: dict[str, Any] = {"mode": "anything", "payload": payload}
        assert route(url, **asked, agent="helios").json()["metadata"]["rule"] == "all"
        assert route(url, **asked).status_code == 404


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        (["--config", "no-such.yml"], {}, "error: no-such.yml: "),
        (
            [],
            {"VISION_ENCODER_URL": "nonsense"},
            "a variable is not valid: VISION_ENCODER_URL: ",
        ),
        (
            [],
            {"VISION_ENCODER_TIMEOUT": "0"},
            "a variable is not valid: VISION_ENCODER_TIMEOUT=0: ",
        ),
        (["--port", "x"], {}, "'x' is not a port, 1 to 65535"),
        (["--port", "99999"], {}, "'99999' is not a port, 1 to 65535"),
        ([], {"API_KEY": "ключ"}, "error: the API key (API_KEY) has characters that no header"),
        ([], {"VISION_ENCODER_URL": "http://[::1"}, "error: the address of the vision encoder"),
    ],
)
def test_what_it_cannot_start_with_is_one_line(
    options: list[str], environment: dict[str, str], said: str
) -> None:
    command = [sys.executable, "-m", "router_client", *options]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_told(router: str) -> None:
    port = router.rpartition(":")[2]
    command = [sys.executable, "-m", "router_client", "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "address already in use" in done.stderr


def test_help_says_what_there_is() -> None:
    command = [sys.executable, "-m", "router_client", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for word in ("POST /route", "--port", "9102", "--host", "VISION_ENCODER_URL"):
        assert word in done.stdout
