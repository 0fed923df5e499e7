"""The vision-rag command against a service, and with --local."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rag.cli.errors import MESSAGES
from rag.cli.parser import main
from rag.store.edge.store import EdgeStore
from tests.support.paths import BUNDLED
from tests.support.pictures import scene_image
from tests.support.rag.command import Run
from tests.support.serving import Server

pytestmark = pytest.mark.service


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command against the service; return its status, output and errors."""
    monkeypatch.setenv("VISION_ENCODER_URL", server.url)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for seed in range(5):
        scene_image(seed).save(folder / f"scene_{seed}.png")
    scene_image(5).convert("L").save(folder / "deeper" / "grey.jpg")
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.png").write_bytes((folder / "scene_0.png").read_bytes()[:150])
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def as_json(output: str) -> Any:
    return json.loads(output)


def test_a_folder_is_indexed_once_and_failures_are_listed(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    options = ("--collection", "folder", "--dao-id", "me", "--failures", tmp_path / "failed.jsonl")
    status, out, err = run("index", folder, *options)
    assert status == 3
    assert out == (
        "indexed 6, updated 0, unchanged 0, duplicates 0, forgotten 0, failed 1, other files 1 "
        "(collection folder, dao_id me)\n"
    )
    assert f"failed {folder / 'broken.png'}: {MESSAGES['broken_image'].en}" in err
    assert f"full list: {tmp_path / 'failed.jsonl'}\n" in err
    assert re.search(r"^indexing .*\d+ pictures/s", err, re.MULTILINE)
    assert ".hidden.png" not in err
    assert "notes.txt" not in err
    (line,) = (tmp_path / "failed.jsonl").read_text().splitlines()
    failure = as_json(line)
    assert failure.keys() == {"path", "code", "why"}
    assert (failure["path"], failure["code"]) == (str(folder / "broken.png"), "broken_image")
    assert f"  details: {failure['why']}\n" in err
    again = run("index", folder, *options)[1]
    assert again.startswith("indexed 0, updated 0, unchanged 6,")
    (folder / "broken.png").unlink()
    assert run("index", folder, *options)[0] == 0
    assert (tmp_path / "failed.jsonl").read_text() == ""
    stats = as_json(run("stats", "--collection", "folder", "--json")[1])
    assert (stats["points"], stats["model"], stats["dimension"]) == (
        6,
        "local-dir:shapes/local",
        128,
    )


def test_a_pdf_is_not_an_image(run: Run, tmp_path: Path) -> None:
    pdf = tmp_path / "manual.pdf"
    pdf.write_bytes(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
    failures = ("--failures", tmp_path / "failed.jsonl")
    status, _, err = run("index", pdf, "--collection", "pdf", *failures)
    assert (status, err.count(MESSAGES["not_an_image"].en)) == (3, 1)
    assert as_json((tmp_path / "failed.jsonl").read_text())["code"] == "not_an_image"


def test_a_dry_run_prints_the_plan_and_changes_nothing(run: Run, folder: Path) -> None:
    (folder / "twin.png").write_bytes((folder / "scene_0.png").read_bytes())
    (folder / "empty.png").write_bytes(b"")
    status, out, _ = run("index", folder, "--dry-run", "--collection", "dry")
    assert status == 0
    assert f"index   {folder / 'scene_0.png'} = {folder / 'twin.png'}\n" in out
    assert f"fail    {folder / 'empty.png'}: {MESSAGES['empty_file'].en}\n" in out
    assert "would index or update 7, leave 0 unchanged" in out
    assert run("stats", "--collection", "dry")[0] == 1


def test_prune_deletes_the_pictures_of_missing_files(run: Run, folder: Path) -> None:
    (folder / "broken.png").unlink()
    run("index", folder, "--collection", "prune")
    (folder / "scene_1.png").unlink()
    assert ", forgotten 0," in run("index", folder, "--collection", "prune")[1]
    assert ", forgotten 1," in run("index", folder, "--prune", "--collection", "prune")[1]
    status, _, err = run("index", folder / "scene_0.png", "--prune", "--collection", "prune")
    assert (status, err) == (1, f"error: {MESSAGES['prune_needs_folder'].en}\n")
    (folder / "scene_2.png").unlink()
    (folder / "lost").symlink_to("/nowhere")  # so the folder cannot be searched completely
    scene_image(6).save(folder / "new.png")
    status, out, err = run("index", folder, "--prune", "--collection", "prune")
    assert (status, out.split(",")[0]) == (3, "indexed 1")
    assert ", forgotten 0," in out
    assert f"failed {folder / 'lost'}: {MESSAGES['unreadable'].en}" in err
    (folder / "lost").unlink()
    (folder / "deeper" / "grey.jpg").unlink()
    _, out, err = run("index", folder, "--prune", "--collection", "prune")
    assert ", forgotten 1," in out  # scene_2
    assert "because their folder is empty: 1." in err


def test_a_list_and_a_manifest_are_sources(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.BytesIO(f"{folder / 'scene_0.png'}\n".encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(lines))
    assert run("index", "-", "--collection", "listed")[1].startswith("indexed 1,")
    manifest = folder / "m.jsonl"
    line = {"path": "scene_1.png", "id": "42", "caption": "Рудий кіт", "category": "pets"}
    manifest.write_text(f"{json.dumps(line)}\nnothing\n")
    status, out, err = run("index", manifest, "--tag", "t", "--collection", "listed")
    assert (status, out[:10]) == (3, "indexed 1,")
    assert f"failed {manifest}, line 2: {MESSAGES['bad_line'].en}" in err
    found = run(
        "search", "x", "--category", "pets", "--tag", "t", "--collection", "listed", "--json"
    )
    (hit,) = as_json(found[1])
    assert (hit["id"], hit["payload"]["caption"]) == ("42", "Рудий кіт")


def test_a_search_combines_texts_and_pictures(run: Run, folder: Path) -> None:
    (folder / "broken.png").unlink()
    run("index", folder, "--collection", "composite")

    def search(*arguments: object) -> list[Any]:
        command = ("search", *arguments, "--collection", "composite", "--json")
        found: list[Any] = as_json(run(*map(str, command))[1])
        return found

    first = search("--image", folder / "scene_3.png")[0]
    assert first["path"] == str(folder / "scene_3.png")
    like = search("--like", first["id"], "--dao-id", "default", "--top-k", 50)
    assert len(like) == 5
    assert first["id"] not in [hit["id"] for hit in like]
    weighed = search(
        "a star", "--image", folder / "scene_3.png", "--weight", "0.1", "--weight", "5"
    )
    assert weighed[0]["id"] == first["id"]
    unlike = search("a star", "--not-image", folder / "scene_3.png", "--top-k", 50)
    assert unlike[-1]["id"] == first["id"]
    assert search("a star", "--not", "a circle")[0]["score"] < 1
    assert len(search("a star", "--offset", 4, "--top-k", 50)) == 2
    assert len(search("a star", "--threshold", "0.999")) == 0
    assert len(search("a star", "--group-by", "dao_id")) == 1
    assert len(search("a star", "--diversity", "0.5", "--top-k", 3)) == 3
    only = {"must": [{"key": "title", "match": {"value": "scene 2"}}]}
    assert len(search("a star", "--filter", json.dumps(only))) == 1


def test_near_duplicates_are_listed(run: Run, folder: Path) -> None:
    (folder / "broken.png").unlink()
    scene_image(1).resize((180, 180)).save(folder / "smaller.png")
    (folder / "twin.png").write_bytes((folder / "scene_2.png").read_bytes())
    run("index", folder, "--collection", "near")
    status, out, _ = run("duplicates", "--threshold", "0.98", "--collection", "near", "--json")
    groups = [{Path(p).name for one in g["pictures"] for p in one["paths"]} for g in as_json(out)]
    assert status == 0
    assert {"scene_2.png", "twin.png"} in groups
    assert {"scene_1.png", "smaller.png"} in groups
    text = run("duplicates", "--threshold", "0.98", "--collection", "near")[1]
    assert f"  {folder / 'smaller.png'}\n" in text
    assert text.endswith(" groups with a similarity of at least 0.98\n")


def test_reindex_with_the_same_model_embeds_nothing(run: Run, folder: Path) -> None:
    run("index", folder / "scene_0.png", "--collection", "same")
    status, out, _ = run("reindex", "--collection", "same")
    assert (status, out) == (
        0,
        "embedded 0, failed 0; same holds 1 pictures of local-dir:shapes/local\n",
    )


def test_pictures_are_found_by_text_and_by_image(run: Run, folder: Path) -> None:
    run("index", folder, "--collection", "search")
    query = folder / "scene_3.png"
    status, out, _ = run("search", "--image", query, "--collection", "search", "--json")
    hits = as_json(out)
    assert status == 0
    assert [set(hit) for hit in hits] == [{"id", "score", "path", "payload", "group"}] * 5
    assert hits[0]["path"] == str(query)
    assert hits[0]["id"] == hashlib.sha256(query.read_bytes()).hexdigest()[:32]
    assert hits[0]["payload"]["title"] == "scene 3"
    text = run("search", "a circle", "--collection", "search", "--top-k", "2", "--json")[1]
    assert len(as_json(text)) == 2
    table = run("search", "a circle", "--collection", "search")[1]
    assert "score" in table
    assert ".png" in table
    nobody = run("search", "a circle", "--collection", "search", "--dao-id", "nobody")
    assert nobody[:2] == (0, "nothing found\n")


def test_pictures_are_deleted_by_their_path_or_id(run: Run, folder: Path) -> None:
    (folder / "twin.png").write_bytes((folder / "scene_0.png").read_bytes())
    names = ("scene_0", "twin", "scene_1", "scene_2")
    run("index", *(folder / f"{name}.png" for name in names), "--collection", "delete")
    second = hashlib.sha256((folder / "scene_2.png").read_bytes()).hexdigest()[:32]
    assert run("delete", second, "--collection", "delete")[1] == "deleted 1\n"
    assert run("delete", folder / "twin.png", "--collection", "delete")[1] == "deleted 1\n"
    assert as_json(run("stats", "--collection", "delete", "--json")[1])["points"] == 2
    assert run("delete", folder / "scene_0.png", "--collection", "delete")[1] == "deleted 1\n"
    status, out, err = run("delete", folder / "scene_0.png", "--collection", "delete")
    assert (status, out) == (1, "deleted 0\n")
    assert err.startswith(f"error: {MESSAGES['not_indexed'].en}\n")
    assert as_json(run("stats", "--collection", "delete", "--json")[1])["points"] == 1
    assert "points" in run("stats", "--collection", "delete")[1]
    manifest = folder / "m.jsonl"
    lines = [{"path": "scene_3.png", "id": image_id} for image_id in "ab"]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run("index", manifest, "--collection", "delete")
    assert run("delete", folder / "scene_3.png", "--collection", "delete")[1] == "deleted 1\n"
    assert as_json(run("stats", "--collection", "delete", "--json")[1])["points"] == 1


def test_local_needs_no_service(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_ENCODER_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("MODEL_NAME", BUNDLED)
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("QDRANT_PATH", str(tmp_path / "local"))
    status, out, err = run("index", folder, "--local")
    assert status == 3, err
    assert out.startswith("indexed 6, updated 0, unchanged 0")
    assert "broken.png" in err
    hits = as_json(run("search", "--image", folder / "scene_1.png", "--local", "--json")[1])
    assert hits[0]["path"] == str(folder / "scene_1.png")


def test_local_fails_at_once_when_another_process_uses_the_store(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_PATH", str(tmp_path / "held"))
    store = EdgeStore(tmp_path / "held")
    try:
        status, _, err = run("stats", "--local")
    finally:
        store.close()
    assert status == 1
    assert err.startswith(f"error: {MESSAGES['store_locked'].en}\ndetails: ")
    assert str(os.getpid()) in err


@pytest.mark.parametrize("output", ["/dev/full", "closed"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_failure_to_write_the_output_is_reported(
    server: Server, folder: Path, run: Run, output: str, form: list[str]
) -> None:
    run("index", folder / "scene_0.png", "--collection", "output")
    code = "from rag.cli.parser import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "stats", "--collection", "output", *form]
    if output == "closed":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(output, os.O_WRONLY)
    ended = subprocess.run(
        command,
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**os.environ, "VISION_ENCODER_URL": server.url},
        text=True,
        timeout=60,
    )
    os.close(writing)
    full = (
        f"error: {MESSAGES['output_unwritable'].en}\n"
        "details: cannot write the output: No space left on device\n"
    )
    assert (ended.returncode, ended.stderr) == (1, full if output == "/dev/full" else "")


def test_a_picture_below_a_linked_folder_is_deleted_by_the_path_it_was_found_at(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    scene_image(6).save(tmp_path / "elsewhere" / "z.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    run("index", folder, "--collection", "linked", "--failures", tmp_path / "failed.jsonl")
    path = folder / "linked" / "z.png"
    assert run("delete", path, "--collection", "linked")[1] == "deleted 1\n"


def test_a_url_is_rejected_unless_the_service_allows_urls(run: Run) -> None:
    status, out, err = run("search", "--image", "http://example.com/a.png")
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {MESSAGES['url_refused'].en}\ndetails: ")
