"""The README's snippets run as they stand, in their order, in a fresh clone.

Only these are replaced: the address of the repository, the port, weights that need a download (the
bundled model serves instead), and the command that needs a container engine, which
`make image-test` and `tests/deploy/test_compose.py` cover.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.deploy.compose import compose
from tests.support.paths import ROOT
from tests.support.pictures import scene_image
from tests.support.serving import free_port

pytestmark = pytest.mark.service

README = (ROOT / "README.md").read_text()
WEIGHTS = re.compile(r"MODEL_NAME=\S+ MODEL_PRETRAINED=\S+")


class Reader:
    """A person who follows the README in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        self.clone = folder / "vision-encoder"
        self.log = folder / "log"
        self.environment = {
            **os.environ,
            "DOCKER_CONFIG": os.environ.get("DOCKER_CONFIG", str(Path.home() / ".docker")),
            "HOME": str(folder),
            "PORT": str(self.port),
            "VISION_ENCODER_URL": self.url,
            "DEVICE": "cpu",
        }

    def as_run(self, command: str) -> str:
        command = WEIGHTS.sub("MODEL_NAME=local-dir:models/shapes", command)
        command = command.replace("localhost:8001", f"localhost:{self.port}")
        return command.replace("docker compose up -d --build", "docker compose config --quiet")

    def runs(self, command: str) -> str:
        """Run a command in the clone and return what it printed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.as_run(command)],
            cwd=self.clone,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def keeps_running(self, command: str, until: str) -> Iterator[None]:
        """Run a command in a terminal of its own, from the time that its output has `until`."""
        with self.log.open("w") as log:
            process = subprocess.Popen(
                ["bash", "-c", self.as_run(command)],
                cwd=self.clone,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                for _ in range(1200):
                    if process.poll() is not None or (self.is_ready() and self.has_said(until)):
                        break
                    time.sleep(0.1)
                assert process.poll() is None, self.log.read_text()
                assert self.has_said(until), self.log.read_text()
                yield
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)

    def has_said(self, text: str) -> bool:
        return text in self.log.read_text()

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands(snippet: str) -> list[str]:
    """Return the commands after `$`, with their continued lines."""
    return [each.strip() for each in re.findall(r"^\$ ((?:.*\\\n)*.*)$", snippet, re.M)]


CONSOLE = [commands(snippet) for snippet in snippets("console")]


def copy_repository(folder: Path) -> Path:
    """Commit the tracked files of this checkout, as they are now, to a repository in `folder`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    for arguments in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "a copy"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


def use_this_environment(clone: Path) -> None:
    """Let the clone's `make install` find the environment that runs this test."""
    (clone / ".venv").symlink_to(Path(sys.prefix))
    for file in (clone / "pyproject.toml", *clone.glob("constraints*.txt")):
        os.utime(file, (0, 0))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Follow the first line of the README: clone the repository."""
    folder = tmp_path_factory.mktemp("reader")
    repository = copy_repository(folder / "origin")
    clone, _, enter = CONSOLE[0][0].partition(" && ")
    assert enter == "cd vision-encoder"
    subprocess.run(clone.replace("…", str(repository)).split(), cwd=folder, check=True)
    reader = Reader(folder)
    use_this_environment(reader.clone)
    return reader


def test_the_demo_runs_and_the_embedding_is_the_one_shown(reader: Reader) -> None:
    (demo,) = CONSOLE[0][1:]
    with reader.keeps_running(demo, until="/ui"):
        assert (reader.clone / "demo.png").exists()
        answer = json.loads(reader.runs(CONSOLE[1][0]))
    shown = snippets("console")[1].splitlines()[-1]
    first = [float(number) for number in re.findall(r"-?\d\.\d+", shown)]
    assert answer["embedding"][: len(first)] == pytest.approx(first, abs=1e-4)
    assert f"{len(answer.pop('embedding')) - len(first)} more" in shown
    assert shown.endswith(json.dumps(answer, separators=(",", ":")).lstrip("{"))


def test_own_pictures_are_indexed_and_found_and_the_programs_run(reader: Reader) -> None:
    pictures = reader.clone.parent / "Pictures"
    pictures.mkdir()
    for seed in range(3):
        scene_image(seed).save(pictures / f"{seed}.jpg")
    (serve,), (index, search) = CONSOLE[2:4]
    with reader.keeps_running(serve, until="Starting production"):
        assert "indexed 3" in reader.runs(index)
        found = reader.runs(search)
        assert all(f"{seed}.jpg" in found for seed in range(3))
        programs = snippets("python")
        assert len(programs) == 2
        for program in programs:
            reader.runs(f"{sys.executable} - <<'END'\n{program}END")


def test_the_commands_that_deploy_it_are_right(reader: Reader) -> None:
    compose()
    copy, up, test = CONSOLE[4]
    for command in (copy, up, f"{test} --help"):
        reader.runs(command)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
