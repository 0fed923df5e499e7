"""The doctor says what this machine lacks, what to do about it, and neither raises nor hangs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from bento.contract.errors import ModelLoadError
from bento.doctor import __main__ as doctor
from bento.doctor.__main__ import examine
from bento.doctor.checks import Finding, Machine, QdrantSettings, available_ram
from bento.doctor.probe import Seen, find_weights, look, run
from bento.settings import Settings
from rag.settings import RagSettings
from tests.conftest import BUNDLED, ROOT, free_port

HAS_GPU = torch.cuda.is_available()
CPU = Seen(
    torch="2.15.0",
    cuda="13.2",
    parameters=428_000_000,
    weights="/cache/open_clip_model.safetensors",
    driver_error="NVML Shared Library Not Found",
    devices_error="Found no NVIDIA driver on your system",
)
GPU = replace(
    CPU,
    driver="580.95.05",
    driver_cuda="13.2",
    gpus=["NVIDIA H200"],
    driver_error="",
    available=True,
    devices=["NVIDIA H200"],
    devices_error="",
    free=140_000_000_000,
)
BLIND = replace(
    GPU,
    driver="535.1",
    driver_cuda="12.2",
    available=False,
    devices=(),
    devices_error="too old",
    free=0,
)


@pytest.fixture(autouse=True)
def _only_these_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*Settings.model_fields, *QdrantSettings.model_fields, "hf_hub_offline"):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.chdir(tmp_path)  # where there is no .env


def machine(seen: Seen = CPU, **others: Any) -> Machine:
    """A machine of 16 GB without containers, of which `look` has seen what is given."""
    return replace(
        Machine(look=lambda *_: seen, ram=lambda: 16_000_000_000, which=lambda _: None), **others
    )


def failed(findings: dict[str, Finding]) -> set[str]:
    assert all(bool(f.remedy) == (f.status == "failed") for f in findings.values())
    return {name for name, finding in findings.items() if finding.status == "failed"}


def as_process(**environment: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "bento.doctor", "--json"],
        cwd=ROOT,
        env={**os.environ, "MODEL_NAME": BUNDLED, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, json.loads(done.stdout)


class Loopback:
    """An HTTP server whose answers are `answers`, by path; it keeps what it was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {f"/{path}": body for path, body in answers.items()}
        self.status: dict[str, int] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.command, self.path, self.headers["api-key"]))
                body = json.dumps(outer.answers.get(self.path)).encode()
                known = 200 if self.path in outer.answers else 404
                self.send_response(outer.status.get(self.path, known))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def loopback() -> Iterator[Callable[..., Loopback]]:
    started: list[Loopback] = []

    def start(**answers: Any) -> Loopback:
        started.append(Loopback(**answers))
        return started[-1]

    yield start
    for each in started:
        each.server.shutdown()
        each.server.server_close()


# This machine


def test_the_bundled_model_can_be_served_here() -> None:
    status, said = as_process(DEVICE="cpu")
    findings = {check["name"]: check for check in said["checks"]}
    assert (status, said["ok"]) == (0, True), said
    assert list(findings) == [
        "python",
        "GPU driver",
        "CUDA",
        "torch sees the GPU",
        "memory",
        "container runtime",
        "weights",
        "Qdrant",
        "port",
    ]
    assert {c["status"] for c in said["checks"]} <= {"ok", "not_needed"}
    assert {findings[name]["status"] for name in ("python", "memory", "weights", "port")} == {"ok"}
    for name in ("GPU driver", "CUDA", "torch sees the GPU"):
        assert findings[name]["status"] == "not_needed"
        assert "DEVICE=cpu takes the CPU" in findings[name]["found"]
    assert "M parameters)" in findings["memory"]["found"]
    assert findings["weights"]["found"].endswith("models/shapes/open_clip_model.safetensors")


@pytest.mark.skipif(HAS_GPU, reason="for machines without a GPU")
def test_a_gpu_that_is_wanted_and_not_there_fails_with_remedies() -> None:
    status, said = as_process(DEVICE="cuda:1")
    wanting = {check["name"]: check for check in said["checks"] if check["status"] == "failed"}
    assert (status, said["ok"]) == (1, False)
    assert set(wanting) == {"GPU driver", "CUDA", "torch sees the GPU", "memory"}
    assert wanting["GPU driver"]["found"].startswith("no NVIDIA driver: ")
    assert "--gpus all" in wanting["GPU driver"]["remedy"]
    assert ", 0.0 GB of GPU memory available" in wanting["memory"]["found"]
    assert all(check["remedy"] for check in wanting.values())


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_the_gpu_of_this_machine_computes() -> None:
    status, said = as_process(DEVICE="cuda:0")
    found = {check["name"]: check["found"] for check in said["checks"]}
    assert (status, said["ok"]) == (0, True), said
    assert "cuda:0 computes" in found["torch sees the GPU"]
    assert "GPU memory" in found["memory"]


def test_a_device_that_does_not_exist_is_named_and_the_rest_is_still_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEVICE", "gpu")
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    findings = examine(machine())
    assert failed(findings) == {"settings"}
    assert findings["settings"].found.startswith("DEVICE=gpu: ")
    assert "cuda" in findings["settings"].found
    assert {"python", "GPU driver", "CUDA", "container runtime", "Qdrant"} <= set(findings)
    assert not {"memory", "weights", "port"} & set(findings)


def test_settings_that_contradict_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_IMAGE_BYTES", "60000000")
    monkeypatch.setenv("QDRANT_PORT", "0")
    found = examine(machine())["settings"].found
    assert found.startswith("MAX_IMAGE_BYTES=60000000")
    assert "QDRANT_PORT=0" in found


def test_a_key_that_is_none_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "s3cret key")
    found = examine(machine())["settings"].found
    assert found.startswith("API_KEY: one key or several")
    assert "s3cret" not in found


def test_an_old_python_fails() -> None:
    findings = examine(machine(python=(3, 10, 14)))
    assert failed(findings) == {"python"}
    assert findings["python"].found == "3.10.14"


# Output


def test_the_table_has_a_mark_for_each_check_and_a_remedy_for_each_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("MODEL_NAME", "local-dir:[red]not markup[/red]")
    assert doctor.main([], machine(replace(CPU, model_error="there is none"))) == 1
    said = capsys.readouterr().out
    lines = said.splitlines()
    marks = {line.split("  ")[1].strip(): line.split()[0] for line in lines[1:-1]}
    assert (marks["python"], marks["weights"], marks["Qdrant"]) == ("✓", "✗", "–")
    assert "local-dir:[red]not markup[/red]" in said
    assert "needs a folder with open_clip_config.json" in said
    assert doctor.main([], machine()) == 0
    assert "can run the service" in capsys.readouterr().out


def test_a_terminal_that_has_no_check_mark_gets_another_character() -> None:
    code = "from bento.doctor.__main__ import *; main([], Machine(look=lambda *_: Seen()))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True)
    assert done.returncode == 0


def test_help_says_what_the_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        doctor.main(["--help"])
    assert end.value.code == 0
    assert "Exit status" in capsys.readouterr().out


# Nothing raises, nothing hangs


def broken(*_: object) -> Any:
    raise RuntimeError("it broke")


@pytest.mark.parametrize("part", ["look", "ram", "which"])
def test_a_probe_that_raises_is_a_finding(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    parts: dict[str, Any] = {part: broken}
    assert doctor.main(["--json"], machine(**parts)) == 1
    said = json.loads(capsys.readouterr().out)
    assert any("it broke" in c["found"] and c["remedy"] for c in said["checks"])


def test_a_check_that_hangs_is_left() -> None:
    over = threading.Event()
    findings = examine(machine(ram=lambda: int(over.wait(60)), seconds=0.2))
    over.set()
    assert failed(findings) == {"memory"}
    assert "no answer within" in findings["memory"].found


def test_a_command_that_hangs_is_ended_and_what_it_said_is_kept() -> None:
    code = "import time; print('said', flush=True); time.sleep(60)"
    began = time.monotonic()
    assert run([sys.executable, "-c", code], seconds=1) == (None, "said\n", "no answer within 1 s")
    assert time.monotonic() - began < 10


def test_a_look_that_hangs_leaves_what_came_before() -> None:
    begun = '{"torch": "2.15.0", "cuda": "13.2", "torch_error": ""}\nnoise\n'
    seen = look(
        "ViT-L-14", "openai", "cpu", run=lambda *_, **__: (None, begun, "no answer within 60 s")
    )
    assert (seen.torch, seen.torch_error) == ("2.15.0", "")
    assert seen.driver_error == seen.model_error == "no answer within 60 s"
    assert failed(examine(machine(seen))) == {"weights"}


def test_torch_that_cannot_be_imported_fails_whatever_the_device() -> None:
    seen = replace(CPU, torch_error="No module named 'torch'")
    assert failed(examine(machine(seen))) == {"CUDA", "weights"}


# GPU


def test_a_gpu_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("auto", "cuda", "cuda:0"):
        monkeypatch.setenv("DEVICE", device)
        findings = examine(machine(GPU))
        assert not failed(findings)
        for name in ("GPU driver", "CUDA", "torch sees the GPU", "memory"):
            assert findings[name].status == "ok"
        assert "NVIDIA H200" in findings["GPU driver"].found
        assert "140.0 GB of GPU memory" in findings["memory"].found


def test_a_gpu_that_is_not_wanted_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICE", "cpu")
    findings = examine(machine(GPU))
    assert not failed(findings)
    assert findings["torch sees the GPU"].status == "not_needed"
    assert "16.0 GB of memory" in findings["memory"].found


@pytest.mark.parametrize(
    ("seen", "device", "wanting"),
    [
        (CPU, "cuda", {"GPU driver", "CUDA", "torch sees the GPU", "memory"}),
        (BLIND, "cuda", {"CUDA", "torch sees the GPU", "memory"}),
        (
            replace(BLIND, cuda="", devices_error="Torch not compiled with CUDA enabled"),
            "cuda",
            {"CUDA", "torch sees the GPU", "memory"},
        ),
        (replace(BLIND, gpus=()), "cuda", {"GPU driver", "CUDA", "torch sees the GPU", "memory"}),
        (replace(GPU, free=0), "cuda:1", {"torch sees the GPU", "memory"}),
        (
            replace(GPU, product_error="CUDA error", free=0),
            "cuda",
            {"torch sees the GPU", "memory"},
        ),
        (
            replace(GPU, product_error="CUDA error", free=0),
            "auto",
            {"torch sees the GPU", "memory"},
        ),
        (replace(GPU, devices=(), free=0), "auto", {"torch sees the GPU", "memory"}),
        (replace(GPU, free=2_000_000_000), "cuda", {"memory"}),
        (replace(GPU, free=2_000_000_000), "auto", {"memory"}),
        (replace(GPU, parameters=2_000_000_000), "cuda", {"memory"}),  # of the machine, to load it
        (CPU, "auto", set()),
        (BLIND, "auto", set()),
        (BLIND, "cpu", set()),
        (replace(GPU, product_error="CUDA error"), "cpu", set()),
    ],
)
def test_each_failure_of_a_gpu_is_found_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, seen: Seen, device: str, wanting: set[str]
) -> None:
    monkeypatch.setenv("DEVICE", device)
    assert failed(examine(machine(seen))) == wanting


def test_a_driver_too_old_for_torch_is_told_from_gpus_that_are_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEVICE", "cuda")
    old = examine(machine(BLIND))["CUDA"]
    assert "13.2" in old.found and "too old" in old.found
    assert "torch built for CUDA 12.2" in old.remedy
    hidden = examine(machine(replace(BLIND, driver_cuda="13.2")))["CUDA"]
    assert "CUDA_VISIBLE_DEVICES" in hidden.remedy


def test_a_gpu_beyond_those_there_names_those_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICE", "cuda:1")
    finding = examine(machine(GPU))["torch sees the GPU"]
    assert "DEVICE=cuda:1" in finding.found
    assert finding.remedy.endswith("auto, cpu, cuda:0")


# Memory


@pytest.mark.parametrize(
    ("workers", "ram", "ok"), [(1, 4.5, 1), (1, 4.3, 0), (2, 8.7, 0), (2, 8.9, 1)]
)
def test_each_worker_needs_the_model_and_a_gigabyte(
    monkeypatch: pytest.MonkeyPatch, workers: int, ram: float, ok: int
) -> None:
    monkeypatch.setenv("WORKERS", str(workers))
    findings = examine(machine(ram=lambda: int(ram * 1e9)))
    assert failed(findings) == (set() if ok else {"memory"})
    assert f"{workers * 4.424:.1f} GB needed" in findings["memory"].found


def test_a_size_that_is_not_known_is_said() -> None:
    finding = examine(machine(replace(CPU, parameters=0)))["memory"]
    assert finding.status == "not_needed"
    assert "not known" in finding.found and "16.0 GB" in finding.found


@pytest.mark.parametrize(
    ("limit", "text", "available"),
    [
        ("memory.max", "max", 8000 << 10),
        ("memory.max", "4096000", 4_096_000),
        ("memory.max", "99999999999", 8000 << 10),
        ("memory/memory.limit_in_bytes", "4096000", 4_096_000),
        ("memory/memory.limit_in_bytes", "9223372036854771712", 8000 << 10),
    ],
)
def test_the_limit_of_a_container_counts(
    tmp_path: Path, limit: str, text: str, available: int
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert available_ram(tmp_path) == 8000 << 10
    path = tmp_path / "sys/fs/cgroup" / limit
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n")
    assert available_ram(tmp_path) == available


def test_a_model_far_too_large_is_counted_and_not_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = json.loads((ROOT / "models/shapes/open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = 10**11
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setenv("MODEL_NAME", f"local-dir:{tmp_path}")
    findings = examine(machine(look=look))
    assert failed(findings) == {"memory"}


# Containers


@pytest.mark.parametrize(
    ("there", "status", "found"),
    [
        ({"docker"}, "ok", "docker 29.1"),
        ({"podman"}, "ok", "podman 29.1"),
        ({"docker", "nvidia-ctk"}, "ok", "nvidia-ctk found"),
        (set(), "not_needed", "only make image and compose need one"),
    ],
)
def test_a_container_runtime_is_found_and_never_needed(
    there: set[str], status: str, found: str
) -> None:
    which = {name: name for name in there}.get
    findings = examine(machine(GPU, which=which, run=lambda _: (0, "29.1\n", "")))
    assert findings["container runtime"].status == status
    assert found in findings["container runtime"].found
    assert not failed(findings)


def test_a_runtime_that_does_not_answer_makes_room_for_the_other() -> None:
    def answers(command: Any) -> tuple[int | None, str, str]:
        return (0, "5.6\n", "") if command[0] == "podman" else (1, "", "no daemon")

    both = {"docker": "docker", "podman": "podman"}
    assert "podman 5.6" in examine(machine(which=both.get, run=answers))["container runtime"].found
    finding = examine(machine(which={"docker": "docker"}.get, run=answers))["container runtime"]
    assert finding.status == "not_needed" and "no daemon" in finding.found


# Weights


@pytest.mark.parametrize(
    ("name", "pretrained", "said"),
    [
        ("local-dir:nowhere", "openai", "there is no nowhere/open_clip_config.json"),
        ("local-dir:", "openai", "there is no open_clip_config.json"),
        ("local-dir:empty", "openai", "empty has no weights"),
        ("ViT-B-32", "weights/mine.pt", "there is no checkpoint file weights/mine.pt"),
        ("vit-b32", "openai", "OpenCLIP knows no model vit-b32; it knows ViT-B-32"),
        ("ViT-B-32", "openia", "OpenCLIP knows no weights openia of ViT-B-32; it knows openai"),
    ],
)
def test_what_cannot_be_loaded_is_named_with_what_can(
    tmp_path: Path, name: str, pretrained: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(ModelLoadError) as error:
        find_weights(name, pretrained)
    assert str(error.value).startswith(said)


def test_a_folder_that_is_not_there_fails_with_what_it_must_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODEL_NAME", "local-dir:nowhere")
    findings = examine(machine(look=look))
    assert failed(findings) == {"weights"}
    assert "MODEL_NAME=local-dir:nowhere" in findings["weights"].found
    assert "open_clip_config.json and its weights" in findings["weights"].remedy


def test_a_model_that_open_clip_does_not_know_fails_with_what_is_allowed() -> None:
    findings = examine(machine(replace(CPU, model_error="OpenCLIP knows no model x")))
    assert failed(findings) == {"weights"}
    assert "list_pretrained" in findings["weights"].remedy


def test_a_checkpoint_file_that_is_there_will_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine.pt").write_bytes(b"weights")
    monkeypatch.setenv("MODEL_NAME", "ViT-B-32")
    monkeypatch.setenv("MODEL_PRETRAINED", "mine.pt")
    findings = examine(machine(look=look))
    assert not failed(findings)
    assert findings["weights"].found == "mine.pt"
    assert "151.3 M parameters" in findings["memory"].found


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "hf-hub:org/model"])
def test_what_is_not_in_the_cache_is_fetched_if_the_hub_answers(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    loopback: Callable[..., Loopback],
    name: str,
) -> None:
    hub = loopback(**{"": "hub"})
    monkeypatch.setenv("MODEL_NAME", name)
    monkeypatch.setenv("MODEL_PRETRAINED", "webli")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    seen = look(name, "webli", "cpu")
    assert "weights, tokenizer" in seen.lacking
    assert not hub.asked  # looking fetches nothing
    findings = examine(machine(seen))
    assert findings["weights"].status == "ok" and hub.url in findings["weights"].found
    assert hub.asked == [("HEAD", "/", None)]
    hub.status["/"] = 503
    assert "answers 503" in examine(machine(seen))["weights"].found
    closed = examine(machine(replace(seen, source=f"http://127.0.0.1:{free_port()}")))
    assert failed(closed) == {"weights"}
    assert "HF_HOME" in closed["weights"].remedy
    offline = examine(machine(replace(seen, source="")))
    assert "HF_HUB_OFFLINE" in offline["weights"].found


def test_offline_nothing_can_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    seen = look("ViT-L-14", "openai", "cpu")
    assert (seen.lacking, seen.source, seen.model_error) == ("weights", "", "")


# Qdrant


def test_the_qdrant_settings_are_those_of_rag() -> None:
    for name, field in QdrantSettings.model_fields.items():
        theirs = RagSettings.model_fields[name]
        assert (field.annotation, field.default) == (theirs.annotation, theirs.default), name
        assert field.metadata == theirs.metadata, name


@pytest.fixture
def qdrant(monkeypatch: pytest.MonkeyPatch, loopback: Callable[..., Loopback]) -> Loopback:
    server = loopback(
        **{"": {"title": "qdrant", "version": "1.16.3"}, "readyz": "", "collections": {}}
    )
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    monkeypatch.setenv("QDRANT_HOST", "127.0.0.1")
    monkeypatch.setenv("QDRANT_PORT", str(server.port))
    monkeypatch.setenv("QDRANT_GRPC_PORT", str(server.port))
    return server


def test_a_qdrant_that_answers_will_do(qdrant: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = examine(machine())
    assert findings["Qdrant"] == Finding("ok", f"Qdrant 1.16.3 at {qdrant.url}")
    monkeypatch.setenv("QDRANT_HOST", "http://127.0.0.1/")
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    assert examine(machine())["Qdrant"].status == "ok"
    assert {key for _, _, key in qdrant.asked} == {None, "secret"}


def test_an_api_key_means_https_as_in_the_service(
    qdrant: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json={"version": "1.17.0"})

    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    assert examine(machine(transport=httpx.MockTransport(answer)))["Qdrant"].status == "ok"
    assert all(url.startswith(f"https://127.0.0.1:{qdrant.port}/") for url in asked)
    findings = examine(machine())  # the server speaks http
    assert failed(findings) == {"Qdrant"} and "secret" not in str(findings)


@pytest.mark.parametrize(
    ("version", "ok"),
    [("1.15.9", False), ("0.11.0", False), ("1.16.0", True), ("2.0.0", True), ("1.17-dev", True)],
)
def test_a_qdrant_too_old_to_keep_metadata_fails(qdrant: Loopback, version: str, ok: bool) -> None:
    qdrant.answers["/"] = {"version": version}
    findings = examine(machine())
    assert failed(findings) == (set() if ok else {"Qdrant"})
    assert version in findings["Qdrant"].found


@pytest.mark.parametrize(
    ("path", "status", "found"),
    [
        ("/readyz", 503, "/readyz answers 503"),
        ("/collections", 401, "refuses calls without an API key"),
        ("/collections", 403, "refuses calls without an API key"),
    ],
)
def test_a_qdrant_that_does_not_serve_us_fails(
    qdrant: Loopback, path: str, status: int, found: str
) -> None:
    qdrant.status[path] = status
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"}
    assert found in findings["Qdrant"].found


def test_a_qdrant_that_is_not_there_fails(
    qdrant: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_GRPC_PORT", str(free_port()))
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"} and "gRPC port" in findings["Qdrant"].found
    monkeypatch.setenv("QDRANT_PORT", str(free_port()))
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"} and "no Qdrant answers" in findings["Qdrant"].found


@pytest.mark.parametrize("body", [["no object"], {"title": "no version"}, None])
def test_what_is_no_qdrant_is_told_from_one(qdrant: Loopback, body: Any) -> None:
    qdrant.answers["/"] = body
    assert "no Qdrant answers" in examine(machine())["Qdrant"].found


@pytest.mark.parametrize("host", ["ftp://qdrant", "qdrant:6333", "http://qdrant/path"])
def test_a_qdrant_host_that_is_none_fails(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    monkeypatch.setenv("QDRANT_HOST", host)
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"}
    assert f"QDRANT_HOST={host}" in findings["Qdrant"].found


def test_the_folder_of_the_embedded_store_is_tried_and_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    monkeypatch.setenv("QDRANT_PATH", "not/yet/there")
    assert not failed(examine(machine()))
    assert list(tmp_path.iterdir()) == []
    full = examine(machine(disk_free=lambda _: 256 << 20))
    assert failed(full) == {"Qdrant"} and "256 MB free" in full["Qdrant"].found
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QDRANT_PATH", "file/qdrant")
    below = examine(machine())
    assert failed(below) == {"Qdrant"} and "cannot be written" in below["Qdrant"].found


def test_workers_cannot_share_the_embedded_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_ENABLED", "true")
    monkeypatch.setenv("WORKERS", "2")
    findings = examine(machine())
    assert failed(findings) == {"Qdrant"} and "WORKERS=2" in findings["Qdrant"].found


# The port


def test_a_port_that_is_taken_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("PORT", str(other.getsockname()[1]))
        findings = examine(machine(transport=httpx.MockTransport(broken_wire)))
    assert failed(findings) == {"port"}
    assert "PORT" in findings["port"].remedy


def broken_wire(_: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("not HTTP")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_the_service_itself_has_is_fine(
    monkeypatch: pytest.MonkeyPatch, loopback: Callable[..., Loopback], host: str
) -> None:
    service = loopback(readyz="", info={"model_name": "ViT-L-14"})
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")  # not for our own port
    monkeypatch.setenv("HOST", host)
    monkeypatch.setenv("PORT", str(service.port))
    findings = examine(machine())
    assert findings["port"].status == "ok"
    assert "a running vision encoder (ViT-L-14)" in findings["port"].found
    service.status["/readyz"] = 503
    assert failed(examine(machine())) == {"port"}


def test_a_service_that_wants_a_key_is_asked_with_the_first(
    monkeypatch: pytest.MonkeyPatch, loopback: Callable[..., Loopback]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/readyz":
            return httpx.Response(200)
        if request.headers.get("authorization") != "Bearer first":
            return httpx.Response(401, json={"error": {"code": "unauthorized"}})
        return httpx.Response(200, json={"model_name": "ViT-L-14"})

    monkeypatch.setenv("PORT", str(loopback().port))
    taken = machine(transport=httpx.MockTransport(answer))
    assert failed(examine(taken)) == {"port"}
    monkeypatch.setenv("API_KEY", "first,second")
    assert not failed(examine(taken))


def test_an_address_of_another_machine_cannot_be_listened_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOST", "192.0.2.1")
    findings = examine(machine())
    assert failed(findings) == {"port"}
    assert "HOST" in findings["port"].remedy
