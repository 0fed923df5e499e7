"""Building the Bento and its image, and the messages when that fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.utils import canonicalize_name

from bento.version import VERSION
from tests.support.deploy.pins import pinned
from tests.support.paths import ROOT
from tests.support.serving import free_port

pytestmark = pytest.mark.service


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Return a folder with the programs that the scripts use, without a container engine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "sh", "sed", "git", "dirname", "env", "cat", "mkdir"):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=True)
        (folder / name).symlink_to(found.stdout.strip())
    return folder


def build(tools: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["deploy/oci/build.sh", "name:tag"],
        cwd=ROOT,
        env={"PATH": str(tools), **environment},
        capture_output=True,
        text=True,
    )


def test_without_an_engine_no_image_is_made(tools: Path) -> None:
    done = build(tools)
    assert done.returncode == 1
    assert done.stderr == "docker, podman and buildah are not installed: install one of them\n"


def test_a_docker_without_its_daemon_fails(tools: Path) -> None:
    program(tools, "docker", "exit 1")
    done = build(tools)
    assert done.returncode == 1
    assert "its daemon does not answer" in done.stderr


@pytest.fixture
def podman(tools: Path) -> Path:
    """Return the tools with a podman that prints its arguments."""
    program(tools, "podman", 'echo "$BUILDAH_FORMAT $*"')
    return tools


def git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_installed_engine_builds_the_image(podman: Path) -> None:
    done = build(podman)
    assert done.returncode == 0, done.stderr
    revision = git("rev-parse", "HEAD").strip()
    if git("status", "--porcelain"):
        revision += "-dirty"
    command, message = done.stdout.splitlines()
    assert command.startswith("docker build --tag name:tag --file deploy/oci/Dockerfile ")
    assert command.endswith(" --label org.opencontainers.image.version=0.1.0 .")
    assert f"--build-arg COMPILER= --build-arg REVISION={revision} " in command
    assert message == (f"built name:tag (cuda12) with podman: version 0.1.0, revision {revision}")
    assert "--build-arg COMPILER=1 " in build(podman, COMPILER="1").stdout


@pytest.mark.parametrize(
    ("given", "variant"),
    [
        ({}, "cuda12"),
        ({"CUDA": "12"}, "cuda12"),
        ({"CUDA": "13"}, "cuda13"),
        ({"CPU": "1"}, "cpu"),
        ({"CUDA": "11"}, None),
        ({"CPU": "1", "CUDA": "13"}, None),
    ],
)
def test_the_variant_of_the_image_can_be_chosen(
    podman: Path, given: dict[str, str], variant: str | None
) -> None:
    done = build(podman, **given)
    assert done.returncode == (0 if variant else 1)
    if variant:
        assert f"--build-arg VARIANT={variant} " in done.stdout
    else:
        assert done.stderr.endswith("set CPU=1, CUDA=12 or CUDA=13\n")


def test_an_image_is_pushed_by_the_builder_that_can_describe_it(tools: Path) -> None:
    program(tools, "docker", 'echo "docker $*"')
    done = build(tools, PUSH="1")
    assert done.returncode == 0, done.stderr
    begin = "docker buildx build --push --sbom=true --provenance=mode=max --tag name:tag "
    assert done.stdout.startswith(begin)


@pytest.mark.parametrize(("engine", "weights"), [("podman", ""), ("docker", "1")])
def test_an_image_that_would_be_pushed_incomplete_is_not_built(
    tools: Path, engine: str, weights: str
) -> None:
    program(tools, engine, "[ $1 = version ] || echo built")
    done = build(tools, PUSH="1", BAKE_WEIGHTS=weights)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"then run {engine} push name:tag" in done.stderr


@pytest.fixture
def installing(tools: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `install-packages.sh` without installing anything."""
    for name in ("grep", "rm", "uname"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    for name in ("pip", "python", "apt-get"):
        program(tools, name, ":")
    for pins in ("constraints.txt", "constraints-cuda12.txt"):
        shutil.copy(ROOT / pins, tmp_path)

    def install(variant: str, uv: str = 'echo "$*"', compiler: str = "") -> Any:
        program(tools, "uv", uv)
        environment = {"PATH": str(tools), "VARIANT": variant, "UV_VERSION": "1"}
        return subprocess.run(
            ["sh", ROOT / "deploy" / "oci" / "install-packages.sh"],
            cwd=tmp_path,
            env={"VIRTUAL_ENV": str(tmp_path / "venv"), **environment, "COMPILER": compiler},
            capture_output=True,
            text=True,
        )

    return install


@pytest.mark.parametrize(
    ("variant", "pins"),
    [
        ("cuda12", "constraints-cuda12.txt"),
        ("cuda13", "constraints.txt"),
        ("cpu", "constraints.txt"),
    ],
)
def test_an_image_installs_the_packages_of_its_variant(
    installing: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    variant: str,
    pins: str,
) -> None:
    done = installing(variant)
    assert done.returncode == 0, done.stderr
    cpu = variant == "cpu"
    backend = "--torch-backend cpu " if cpu else ""
    assert done.stdout == f"pip install {backend}--no-deps -r requirements.txt\n"
    listed = pinned(str(tmp_path / "requirements.txt"))
    left_out = pinned(pins).keys() - listed.keys()
    assert listed.items() <= pinned(pins).items()
    assert "nvidia-ml-py" in listed  # BentoML imports it
    if cpu:
        assert left_out == {n for n in pinned(pins) if re.match("triton|cuda-|nvidia-(?!ml)", n)}
        assert len(left_out) > 10
    else:
        assert left_out == {"triton"}
        installing(variant, compiler="1")
        assert pinned(str(tmp_path / "requirements.txt")) == pinned(pins)


def test_a_cpu_image_whose_torch_cannot_be_downloaded_is_not_built(
    installing: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = installing("cpu", uv="echo no route >&2; exit 2")
    assert done.returncode == 1
    assert "no route\nThe CPU build of torch was not installed." in done.stderr
    assert installing("cuda12", uv="exit 2").stderr == ""


def test_an_unknown_variant_is_not_built(
    installing: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = installing("rocm")
    assert done.returncode == 1
    assert done.stderr == "VARIANT=rocm is unknown: use cuda12, cuda13 or cpu\n"


def test_an_engine_that_fails_makes_no_image(podman: Path) -> None:
    program(podman, "podman", "echo no space left on device >&2; exit 125")
    done = build(podman)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "no space left on device\n"


def test_the_image_has_the_variables_and_the_python_of_the_bento() -> None:
    dockerfile = (ROOT / "deploy" / "oci" / "Dockerfile").read_text()
    variables = dict(re.findall(r"([A-Z_]+)=(\S+)", dockerfile.partition("ENV LANG")[2]))
    bento = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    assert len(bento["envs"]) >= 4
    for variable in bento["envs"]:
        assert variables[variable["name"]] == variable["value"]
    assert f"ARG PYTHON_VERSION={bento['docker']['python_version']}\n" in dockerfile


def test_the_build_gets_every_file_of_the_bento() -> None:
    """The patterns of .dockerignore name what bentofile.yaml includes."""
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    included = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["include"]
    assert len(included) >= 6
    for pattern in included:
        assert pattern == "sbom.cdx.json" or f"!{pattern.removesuffix('/**')}" in kept


def test_weights_are_baked_into_the_built_image(podman: Path) -> None:
    fetching = 'echo "fetched $MODEL_NAME $MODEL_PRETRAINED"'
    program(podman, "python", f'{fetching}; mkdir -p "$HF_HUB_CACHE/models--$MODEL_NAME"')
    given = {"BAKE_WEIGHTS": "1", "MODEL_NAME": "no/model", "MODEL_PRETRAINED": "of-a-test"}
    folder = ROOT / ".data" / "weights" / "no-model-of-a-test"
    try:
        done = build(podman, **given)
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    fetched, made, baked, message = done.stdout.splitlines()
    assert fetched == "fetched no/model of-a-test"
    assert made.endswith(" .")
    assert baked == (
        "docker build --tag name:tag --file deploy/oci/weights.Dockerfile --build-arg "
        "IMAGE=name:tag --build-arg NAME=no/model --build-arg PRETRAINED=of-a-test "
        ".data/weights/no-model-of-a-test"
    )
    assert message.endswith("weights of no/model of-a-test")


@pytest.mark.parametrize(
    ("python", "model", "problem"),
    [
        ("exit 1", "a-model", ""),  # fetch_weights prints the problem
        ("exit 0", "a-model", "the weights of a-model openai do not come from a hub"),
        (
            "exit 0",
            "local-dir:models/shapes",
            "needs weights from a hub, not local-dir:models/shapes",
        ),
    ],
)
def test_weights_that_cannot_be_baked_make_no_image(
    podman: Path, python: str, model: str, problem: str
) -> None:
    program(podman, "python", python)
    done = build(podman, BAKE_WEIGHTS="1", MODEL_NAME=model)
    shutil.rmtree(ROOT / ".data" / "weights" / f"{model}-openai", ignore_errors=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert problem in done.stderr


def test_a_bento_contains_only_committed_files(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True)
    program_folder = copy / ".venv" / "bin"
    program_folder.mkdir(parents=True)
    program(program_folder, "bentoml", 'echo "$@"; cat bento/revision.txt sbom.cdx.json')

    def make() -> subprocess.CompletedProcess[str]:
        command = ["make", "-o", "install", "bento"]  # without installing
        return subprocess.run(command, cwd=copy, capture_output=True, text=True)

    made = make()
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=copy, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert made.returncode == 0, made.stderr
    printed, _, bill = made.stdout.partition("{")
    assert f"build --label revision={revision}\n{revision}\n" in printed
    assert json.loads("{" + bill)["bomFormat"] == "CycloneDX"
    assert not (copy / "bento" / "revision.txt").exists()
    assert not (copy / "sbom.cdx.json").exists()
    (copy / "service.py").write_text("changed")
    refused = make()
    assert refused.returncode != 0
    assert "commit or stash" in refused.stdout
    assert "build" not in refused.stdout


def test_the_bill_of_materials_lists_what_the_image_installs() -> None:
    command = [sys.executable, "deploy/oci/sbom.py", "constraints-cuda12.txt"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    bill = json.loads(printed)
    named = {canonicalize_name(c["name"]): c["version"] for c in bill["components"]}
    assert named == pinned("constraints-cuda12.txt")
    assert [c["purl"] for c in bill["components"]] == [
        f"pkg:pypi/{n}@{v}" for n, v in named.items()
    ]
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["version"] == VERSION
    assert "sbom.cdx.json" in yaml.safe_load((ROOT / "bentofile.yaml").read_text())["include"]
    assert "://" not in printed.replace("http://cyclonedx.org/schema/", "")
    for private in (str(ROOT), str(Path.home()), "serialNumber", "timestamp"):
        assert private not in printed


def test_the_image_runs_with_search_and_volumes(tmp_path: Path) -> None:
    names = ("MODEL_NAME", "MODEL_PRETRAINED", "API_KEY", "UI_PUBLIC")
    program(tmp_path, "docker", 'echo "$@"; env')
    port = free_port()
    (tmp_path / ".env").write_text(
        f"PORT=1\nPORT='{port}'  # the last one counts\nexport API_KEY=\"one,two\"\r\n"
        "VISION_MODEL_NAME=ViT-B-32\nVISION_MODEL_PRETRAINED=laion2b_s34b_b79k # a tag\n"
    )
    unset = dict.fromkeys((*names, "PORT", "QDRANT_ENABLED", "VISION_MODEL_NAME"), "")
    done = subprocess.run(
        ["make", "-f", ROOT / "Makefile", "image-run", "IMAGE=a:b"],
        cwd=tmp_path,
        env={**os.environ, **unset, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, *rest = done.stdout.splitlines()
    arguments = first.split()
    assert (arguments[0], arguments[-1]) == ("run", "a:b")
    assert f"127.0.0.1:{port}:8001" in arguments
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    assert given["QDRANT_ENABLED"] == "true"
    handed_on = dict(line.split("=", 1) for line in rest if "=" in line)
    assert set(names) < set(arguments)
    assert [handed_on[name] for name in names] == ["ViT-B-32", "laion2b_s34b_b79k", "one,two", ""]
    mounted = [a.split(":")[1] for a in arguments if a.startswith("vision-encoder-")]
    made = (ROOT / "deploy" / "oci" / "make-data-folders.sh").read_text()
    assert len(mounted) == 3
    for folder in mounted:  # must belong to the image's user, or the service cannot write
        assert folder in made
        assert any(value.startswith(folder) for value in given.values())


def test_an_image_that_does_not_exist_is_named(tmp_path: Path) -> None:
    program(tmp_path, "docker", '[ "$1" = run ] || { echo "no such image" >&2; exit 1; }')
    done = subprocess.run(
        ["make", "-f", ROOT / "Makefile", "image-run", "IMAGE=r.example/encoder:wrong"],
        cwd=tmp_path,
        env={**os.environ, "PORT": str(free_port()), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    sentence = "there is no image r.example/encoder:wrong: build it with `make image`"
    assert sentence in done.stdout


def test_image_test_prints_why_it_is_skipped(tmp_path: Path) -> None:
    program(tmp_path, "id", "echo 1000")
    done = subprocess.run(
        ["deploy/oci/test.sh"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "image-test: SKIPPED: it needs root\n")
