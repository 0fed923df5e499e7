"""The pages name only what exists, and the generated ones are current."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bento.contract.errors import ModelLoadError, ServiceError
from bento.contract.routes import ROUTES
from bento.settings import Settings
from rag.cli.parser import main
from tests.support.deploy.variables import BUILD, FIELDS, PREFIXED
from tests.support.paths import ROOT
from tests.support.pictures import scene_image
from tests.support.serving import Server
from tests.support.wire import answer, wire

pytestmark = pytest.mark.service

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "models").rglob("*.md"),
    )
}


def written(value: object) -> str:
    """Return a default as `.env` has it."""
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))


def test_the_settings_page_is_generated_from_the_settings() -> None:
    made = subprocess.run(
        [sys.executable, "docs/settings.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert PAGES["docs/settings.md"] == made.stdout, "run make docs"
    named = re.findall(r"^\| `([A-Z_]+)` \|", made.stdout, re.M)
    assert set(named) == set(FIELDS)


def test_the_example_environment_has_every_variable_with_its_default() -> None:
    lines = re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.M)
    given = {name.removeprefix("VISION_") if name in PREFIXED else name: v for name, v in lines}
    assert set(given) == set(FIELDS) | BUILD
    for name, value in given.items():
        if name in FIELDS and FIELDS[name].default is not None:
            assert value == written(FIELDS[name].default), name


def test_the_prefixed_variables_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("VISION_DEVICE=cpu\nVISION_MODEL_NAME=RN50\nMAX_BATCH_SIZE=\n")
    settings = Settings()
    assert (settings.device, settings.model_name) == ("cpu", "RN50")
    assert settings.max_batch_size == 32  # empty: as not set
    monkeypatch.setenv("MODEL_NAME", "RN101")  # the environment goes before the file
    assert Settings().model_name == "RN101"


def test_the_configuration_of_nginx_on_the_page_is_the_tested_one() -> None:
    (shown,) = re.findall(r"```nginx\n(.*?)```", PAGES["docs/deploy.md"], re.S)
    tested = (ROOT / "deploy" / "nginx.conf").read_text()
    assert shown == re.sub(r"(?m)^#.*\n+", "", tested).lstrip()


def test_every_named_route_exists() -> None:
    named = {
        route
        for page in PAGES.values()
        for route in re.findall(r"`((?:GET|POST|PATCH|DELETE) /[^`?]*)`", page)
    }
    known = {f"{route.method} {route.path}" for route in ROUTES} | {"POST /route", "GET /providers"}
    assert len(named) > 20
    assert named - known == set()


def test_every_named_make_target_exists() -> None:
    named = {
        target
        for page in PAGES.values()
        for target in re.findall(r"(?:`|^\$ .*?)make (?!-)([a-z-]+)", page, re.M)
    }
    assert len(named) > 15
    assert named - TARGETS == set()


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {line.split()[0] for line in listed.stdout.splitlines()} == TARGETS


def test_the_search_page_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+)(?:  |$)", capsys.readouterr().out, re.M)
    assert len(commands) > 4
    table = PAGES["docs/search.md"]
    assert re.findall(r"^\| `vision-rag (\w+)", table, re.M) == commands


def test_the_operations_page_explains_the_codes_that_operators_can_mend() -> None:
    """Clients mend most 4xx themselves; docs/api.md lists all codes."""
    classes = [ServiceError]
    for each in classes:
        errors = ServiceError.__module__
        classes.extend(sub for sub in each.__subclasses__() if sub.__module__ == errors)
    served = {each.code: each.status for each in classes if each is not ModelLoadError}
    section = PAGES["docs/operations.md"].split("## Troubleshoot")[1]
    explained = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", section, re.M))
    assert {code: served.get(code) for code in explained} == {
        code: int(status) for code, status in explained.items()
    }
    assert {code for code, status in served.items() if status >= 429} <= explained.keys()


def test_the_collection_is_made_by_the_target_as_by_the_documented_curl() -> None:
    page = PAGES["docs/deploy.md"]
    path, body = re.findall(r"-X PUT http://localhost:6333(\S+).*?-d '([^']+)'", page, re.S)[0]
    with wire(answer(200, {"result": True}), answer(409, "exists")) as qdrant:
        command = ["make", "collection", f"QDRANT_URL={qdrant.url}", "QDRANT_API_KEY=k"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        head, _, sent = qdrant.requests[0].decode().partition("\r\n\r\n")
        assert head.startswith(f"PUT {path} HTTP/1.1")
        assert "api-key: k" in head
        assert json.loads(sent) == json.loads(body)
        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert again.returncode != 0
        assert "daarion_images new?" in again.stdout


def test_the_python_of_the_router_page_runs(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VISION_ENCODER_URL", server.url)
    scene_image(1).save("cat.jpg")
    blocks = re.findall(r"```python\n(.*?)```", PAGES["docs/router.md"], re.S)
    said = (
        "invalid_request cannot read no-such.jpg: No such file or directory\n42 ",
        "Знайдено 1 зображення:\n1. cat.jpg",
        "True 1 Found 1 image:",
    )
    for block, expected in zip(blocks, said, strict=True):
        command = [sys.executable, "-c", block]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


def test_every_link_leads_to_a_file() -> None:
    links = [
        (page, target)
        for page, text in PAGES.items()
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text)
        if "://" not in target
    ]
    assert len(links) > 40
    broken = [each for each in links if not (ROOT / each[0]).parent.joinpath(each[1]).exists()]
    assert broken == []


def test_every_path_in_the_recipes_exists() -> None:
    paths = re.findall(
        r"`((?:bento|rag|router_client|tests|docs)/[\w/.]*)`", PAGES["CONTRIBUTING.md"]
    )
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_claim_of_the_security_page_names_tests_that_exist() -> None:
    page = PAGES["docs/security.md"]
    rows = re.findall(r"^\| (?!claim |what is bounded )(.+) \| ([^|]*) \|$", page, re.M)
    assert len(rows) == len(re.findall(r"^\| ", page, re.M)) - len(
        re.findall(r"^\|---", page, re.M)
    )
    for claim, tests in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert named, claim
        assert len(named) == tests.count("`") // 2, claim
        for file, name in named:
            tree = ast.parse((ROOT / file).read_text())
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in functions, f"{file}::{name}"
