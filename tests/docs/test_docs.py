"""What the README names exists, and what exists it names."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bento import Settings
from bento.contract.routes import ROUTES
from rag.cli.parser import main
from tests.support.deploy.variables import FIELDS, PREFIXED, settings_table
from tests.support.paths import ROOT
from tests.support.pictures import scene_image
from tests.support.serving import Server
from tests.support.wire import answer, wire

README = (ROOT / "README.md").read_text()


def written(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


def test_every_variable_is_documented_with_its_default() -> None:
    assert settings_table() == {name: written(field.default) for name, field in FIELDS.items()}


def test_the_example_environment_has_every_variable_with_its_default() -> None:
    lines = re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.M)
    given = {name.removeprefix("VISION_") if name in PREFIXED else name: v for name, v in lines}
    assert set(given) == set(FIELDS)
    for name, value in given.items():
        if FIELDS[name].default is not None:
            assert value == written(FIELDS[name].default), name


def test_the_prefixed_variables_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("VISION_DEVICE=cpu\nVISION_MODEL_NAME=RN50\nMAX_BATCH_SIZE=\n")
    settings = Settings()
    assert (settings.device, settings.model_name) == ("cpu", "RN50")
    assert settings.max_batch_size == 32  # empty: as not set
    monkeypatch.setenv("MODEL_NAME", "RN101")  # the environment goes before the file
    assert Settings().model_name == "RN101"


def test_the_readme_names_no_route_that_there_is_not() -> None:
    named = set(re.findall(r"`((?:GET|POST|PATCH|DELETE) /[^`]*)`", README))
    assert named <= {f"{route.method} {route.path}" for route in ROUTES}
    assert len(named) > 20


def test_every_make_target_is_documented_and_no_other() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^\| `make ([a-z-]+)`", README, re.M)) == targets - {"help"}
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(target in listed.stdout for target in targets)


def test_the_commands_of_the_readme_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for command in set(re.findall(r"vision-rag (\w+) ", README)):
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0, command
        capsys.readouterr()


def test_the_collection_is_made_by_the_target_as_by_the_documented_curl() -> None:
    page = (ROOT / "docs" / "router.md").read_text()
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
        assert "is daarion_images new?" in again.stdout


def test_the_python_of_the_router_page_runs(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VISION_ENCODER_URL", server.url)
    scene_image(1).save("cat.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "router.md").read_text(), re.S)
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


def test_the_files_that_documents_link_to_exist() -> None:
    for document in (
        ROOT / "README.md",
        ROOT / "docs" / "router.md",
        ROOT / "docs" / "deploy.md",
        ROOT / "docs" / "security.md",
        ROOT / "models" / "shapes" / "README.md",
    ):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / Path(target)).exists(), f"{document}: {target}"


def test_every_claim_of_the_security_page_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| (?!claim |---)(.+) \| ([^|]*) \|$", page, re.M)
    assert len(rows) == len(re.findall(r"^\|", page, re.M)) - 2 * page.count("| claim | test |")
    for claim, tests in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert named and len(named) == tests.count("`") // 2, claim
        for file, name in named:
            tree = ast.parse((ROOT / file).read_text())
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in functions, f"{file}::{name}"
