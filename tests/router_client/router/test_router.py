"""The reference router as a process, in front of a running service."""

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
import psutil  # type: ignore[import-untyped]
import pytest

from bento import Encoder
from router_client import VisionEncoderClient
from tests.support.paths import ROOT
from tests.support.pictures import file_bytes, scene_image
from tests.support.router_client.routing import routing
from tests.support.serving import Server

pytestmark = pytest.mark.service


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


def test_each_mode_is_answered_by_its_provider(
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


def test_the_providers_are_listed_with_their_rules(router: str, server: Server) -> None:
    listed = httpx.get(f"{router}/providers").json()["providers"]
    assert [(p["id"], p["base_url"], p["healthy"], p["error"]) for p in listed] == [
        ("vision_encoder", server.url, True, None),
        ("vision_rag", server.url, True, None),
    ]
    assert [rule["id"] for p in listed for rule in p["rules"]] == ["vision_embed", "image_search"]


def test_128_concurrent_requests_are_all_answered(router: str, encoder: Encoder) -> None:
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
            await asyncio.gather(*(one(client, i) for i in range(64)))

    asyncio.run(all_of_them())


def test_many_large_requests_use_limited_memory(router: str) -> None:
    port = router.rpartition(":")[2]
    # The cmdline of a process that ends meanwhile is None.
    (process,) = [p for p in psutil.process_iter(["cmdline"]) if port in (p.info["cmdline"] or ())]
    before = process.memory_info().rss
    body = json.dumps({"mode": "chat", "payload": {"image_base64": "A" * 28_000_000}}).encode()

    def send(_: int) -> int:
        return httpx.post(f"{router}/route", content=body, timeout=120).status_code

    with ThreadPoolExecutor(12) as threads:
        assert set(threads.map(send, range(12))) == {404}
    assert process.memory_info().rss - before < 400_000_000


def test_a_port_in_use_is_reported(router: str) -> None:
    port = router.rpartition(":")[2]
    command = [sys.executable, "-m", "router_client", "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "address already in use" in done.stderr
