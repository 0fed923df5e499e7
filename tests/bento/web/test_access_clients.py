"""Access control of running services: without a key, and with the clients that send one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from openai import AuthenticationError, OpenAI

from bento import Settings
from bento.web.access import warning
from router_client import VisionEncoderClient, VisionEncoderUnauthorized
from tests.support.bento.access import KEYS
from tests.support.paths import BUNDLED
from tests.support.pictures import scene_image
from tests.support.router_client.routing import routing
from tests.support.serving import Server, logged

pytestmark = pytest.mark.service


def test_a_service_without_a_key_warns_once_at_start(locked: Server, server: Server) -> None:
    line = logged(server, level="WARNING")
    assert line["message"] == warning(Settings())
    assert "API_KEY" not in locked.log.read_text()


def test_a_service_without_a_key_rejects_foreign_pages(server: Server) -> None:
    url = f"{server.url}/collections/daarion_images/publish"
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        answer = httpx.post(url, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "foreign_page")
        assert "evil.example" in answer.json()["error"]


def test_our_clients_send_the_first_of_several_keys(
    locked: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with VisionEncoderClient(locked.url) as client, pytest.raises(VisionEncoderUnauthorized) as no:
        client.embed_text("a")
    assert (no.value.status, no.value.code) == (401, "unauthorized")
    assert "the API key is missing" in str(no.value)
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
    assert "does not accept the API key" in done.stderr
    assert "Traceback" not in done.stderr
    assert "wr0ng" not in done.stderr


def test_the_router_sends_the_key_and_reports_a_rejected_one(locked: Server) -> None:
    with routing(locked.url, API_KEY=",".join(KEYS)) as url:
        providers = httpx.get(f"{url}/providers").json()["providers"]
        assert [provider["healthy"] for provider in providers] == [True, True]
        body = {"mode": "vision_embed", "payload": {"operation": "embed_text", "text": "a"}}
        assert httpx.post(f"{url}/route", json=body, timeout=30).json()["ok"] is True
    with routing(locked.url, API_KEY="wr0ng") as url:
        providers = httpx.get(f"{url}/providers").json()["providers"]
        assert [provider["healthy"] for provider in providers] == [False, False]
        assert all(provider["error"] for provider in providers)


def test_openais_client_sends_its_key(locked: Server) -> None:
    with OpenAI(base_url=f"{locked.url}/v1", api_key=KEYS[1]) as client:
        answer = client.embeddings.create(model=BUNDLED, input="a red circle")
        assert len(answer.data[0].embedding) == 128
    with OpenAI(base_url=f"{locked.url}/v1", api_key="wr0ng") as client:
        with pytest.raises(AuthenticationError) as error:
            client.embeddings.create(model=BUNDLED, input="a red circle")
        assert error.value.code == "unauthorized"


def test_bentomls_client_sends_its_token(locked: Server) -> None:
    code = (
        "import bentoml, sys\n"
        "with bentoml.SyncHTTPClient(sys.argv[1], token=sys.argv[2]) as client:\n"
        "    print(len(client.embed_text({'text': 'a red circle'})['embedding']))\n"
    )
    command = [sys.executable, "-c", code, locked.url, KEYS[0]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "128\n"), done.stderr
