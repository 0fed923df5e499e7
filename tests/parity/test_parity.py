"""Every way to run the service gives the same answers to one corpus of requests."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.parity.corpus import CORPUS, MODEL
from tests.parity.playing import Answer, differences, play
from tests.support.paths import ROOT
from tests.support.serving import free_port, serving, wait_until_ready

pytestmark = pytest.mark.service

CONTAINER = os.environ.get("CONTAINER_URL")


def environment(folder: Path) -> dict[str, str]:
    """Return the settings of all services, each with an empty store in `folder`."""
    return {
        "BENTOML_DO_NOT_TRACK": "True",
        "MODEL_NAME": MODEL,
        "DEVICE": "cpu",
        "DTYPE": "float32",
        "QDRANT_ENABLED": "true",
        "QDRANT_PATH": str(folder / "qdrant"),
        "THUMBNAILS_PATH": str(folder / "thumbnails"),
    }


def played(url: str) -> list[Answer]:
    with httpx.Client(base_url=url, timeout=60, follow_redirects=False) as client:
        return play(client)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    folder = tmp_path_factory.mktemp("checkout")
    with serving(folder, **environment(folder)) as server:
        return played(server.url)


def in_a_process(folder: Path, **variables: str) -> list[list[Answer]]:
    """Run the service in a new process, and return its answers to each play of the corpus."""
    command = [sys.executable, "-m", "tests.parity.in_process", str(folder / "answers")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment(folder), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    played = pickle.loads((folder / "answers").read_bytes())
    return [[Answer(*answer) for answer in each] for each in played]


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    (answers,) = in_a_process(tmp_path_factory.mktemp("in-process"))
    return answers


@pytest.fixture(scope="module")
def with_key(tmp_path_factory: pytest.TempPathFactory) -> list[list[Answer]]:
    return in_a_process(tmp_path_factory.mktemp("with-key"), API_KEY="a-key")


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Answer]]:
    folder = tmp_path_factory.mktemp("bento")
    port = free_port()
    settings = {
        **os.environ,
        **environment(folder),
        "BENTOML_HOME": str(folder / "bentoml"),
        "HOST": "127.0.0.1",
        "PORT": str(port),
    }
    bentoml = [sys.executable, "-m", "bentoml"]
    built = subprocess.run(
        [*bentoml, "build"], cwd=ROOT, env=settings, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (sources,) = (folder / "bentoml" / "bentos" / "vision-encoder").glob("*/src")
    assert not (sources / "tests").exists()
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*bentoml, "serve", "vision-encoder:latest"],
            cwd=folder,
            env=settings,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, log)
        yield played(url)
    finally:
        process.terminate()
        process.wait(30)


def test_the_service_in_process_answers_as_the_served_one(
    in_process: list[Answer], checkout: list[Answer]
) -> None:
    assert differences("in process", in_process, "served", checkout) == []


def test_the_service_with_a_key_answers_as_the_one_without(
    with_key: list[list[Answer]], checkout: list[Answer]
) -> None:
    assert differences("with a key", with_key[0], "without", checkout) == []


def test_without_a_key_only_the_probes_answer(with_key: list[list[Answer]]) -> None:
    statuses = {ask.path: set[int]() for ask in CORPUS}
    for ask, answer in zip(CORPUS, with_key[1], strict=True):
        statuses[ask.path].add(answer.status)
    probes = {path for path, seen in statuses.items() if seen == {200}}
    assert probes == {"/livez", "/readyz", "/healthz"}
    assert all(statuses[path] == {401} for path in statuses.keys() - probes)


def test_the_bento_answers_as_the_checkout(bento: list[Answer], checkout: list[Answer]) -> None:
    assert differences("the Bento", bento, "the checkout", checkout) == []


@pytest.mark.skipif(CONTAINER is None, reason="CONTAINER_URL is not set; `make image-test` sets it")
def test_the_container_answers_as_the_checkout(checkout: list[Answer]) -> None:
    assert CONTAINER is not None
    assert differences("the container", played(CONTAINER), "the checkout", checkout) == []


# The corpus itself


def test_every_route_has_a_request_that_succeeds_and_one_that_fails(checkout: list[Answer]) -> None:
    document = next(a for q, a in zip(CORPUS, checkout, strict=True) if q.path == "/openapi.json")
    routes = json.loads(document.body)["paths"]
    statuses: dict[tuple[str, str], set[int]] = {}
    for ask, answer in zip(CORPUS, checkout, strict=True):
        for path in routes:
            pattern = re.sub(r"\{[^}]+\}", "[^/]+", path)
            if re.fullmatch(pattern, ask.path) and ask.method.lower() in routes[path]:
                statuses.setdefault((ask.method, path), set()).add(answer.status)
    asked = {(method.upper(), path) for path, item in routes.items() for method in item}
    assert len(asked) >= 25
    assert statuses.keys() == asked
    for (method, path), seen in statuses.items():
        assert 200 in seen, f"no request to {method} {path} succeeds"
        assert not any(status >= 500 for status in seen), f"{method} {path}: {seen}"
        if method == "POST" and not path.endswith("/publish"):
            assert any(400 <= status < 500 for status in seen), (
                f"no request to {method} {path} fails"
            )
    assert len({ask.name for ask in CORPUS}) >= len(CORPUS) - 1  # one request is sent twice
