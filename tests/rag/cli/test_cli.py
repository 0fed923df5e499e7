"""The vision-rag command, against a served service and in process."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag.cli import commands
from rag.cli.parser import main
from rag.store.edge.store import EdgeStore
from tests.support.paths import BUNDLED
from tests.support.pictures import scene_image
from tests.support.serving import Server, free_port

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command against the served service; return its status, output and errors."""
    monkeypatch.setenv("VISION_ENCODER_URL", server.url)
    monkeypatch.setattr(commands._out, "width", 300)

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


def test_a_folder_is_indexed_once_and_what_cannot_be_is_told(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    options = ("--collection", "folder", "--dao-id", "me", "--failures", tmp_path / "failed.jsonl")
    status, out, err = run("index", folder, *options)
    assert status == 3
    assert out == (
        "indexed 6, updated 0, unchanged 0, duplicates 0, forgotten 0, failed 1, other files 1 "
        "(collection folder, dao_id me)\n"
    )
    why = "the PNG image is broken or truncated"
    assert f"failed {folder / 'broken.png'}: {why}" in err
    assert "all of them: " in err and "failed.jsonl" in err
    assert re.search(r"^indexing .*\d+ pictures/s", err, re.MULTILINE)
    assert ".hidden.png" not in err and "notes.txt" not in err
    (line,) = (tmp_path / "failed.jsonl").read_text().splitlines()
    assert as_json(line)["path"] == str(folder / "broken.png")
    assert as_json(line)["why"].startswith(why)
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


def test_a_dry_run_says_what_would_happen_and_changes_nothing(run: Run, folder: Path) -> None:
    (folder / "twin.png").write_bytes((folder / "scene_0.png").read_bytes())
    (folder / "empty.png").write_bytes(b"")
    status, out, _ = run("index", folder, "--dry-run", "--collection", "dry")
    assert status == 0
    assert f"index   {folder / 'scene_0.png'} = {folder / 'twin.png'}\n" in out
    assert f"fail    {folder / 'empty.png'}: the file is empty\n" in out
    assert "would index or update 7, leave 0 unchanged" in out
    assert run("stats", "--collection", "dry")[0] == 1


def test_gone_files_are_forgotten_when_asked(run: Run, folder: Path) -> None:
    (folder / "broken.png").unlink()
    run("index", folder, "--collection", "prune")
    (folder / "scene_1.png").unlink()
    assert ", forgotten 0," in run("index", folder, "--collection", "prune")[1]
    assert ", forgotten 1," in run("index", folder, "--prune", "--collection", "prune")[1]
    status, _, err = run("index", folder / "scene_0.png", "--prune", "--collection", "prune")
    assert status == 1 and "--prune needs a folder" in err
    (folder / "scene_2.png").unlink()
    (folder / "lost").symlink_to("/nowhere")  # nobody knows what is there
    scene_image(6).save(folder / "new.png")
    status, out, err = run("index", folder, "--prune", "--collection", "prune")
    assert (status, out.split(",")[0]) == (3, "indexed 1") and ", forgotten 0," in out
    assert f"failed {folder / 'lost'}: cannot be read" in err
    (folder / "lost").unlink()
    (folder / "deeper" / "grey.jpg").unlink()
    _, out, err = run("index", folder, "--prune", "--collection", "prune")
    assert ", forgotten 1," in out  # scene_2
    assert "left 1 pictures of folders that are empty" in err


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
    assert f"failed {manifest}, line 2: is not JSON" in err
    found = run(
        "search", "x", "--category", "pets", "--tag", "t", "--collection", "listed", "--json"
    )
    (hit,) = as_json(found[1])
    assert (hit["id"], hit["payload"]["caption"]) == ("42", "Рудий кіт")


def test_texts_and_pictures_add_up_to_a_search(run: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").unlink()
    run("index", folder, "--collection", "composite")

    def search(*arguments: object) -> list[Any]:
        command = ("search", *arguments, "--collection", "composite", "--json")
        found: list[Any] = as_json(run(*map(str, command))[1])
        return found

    first = search("--image", folder / "scene_3.png")[0]
    assert first["path"] == str(folder / "scene_3.png")
    like = search("--like", first["id"], "--dao-id", "default", "--top-k", 50)
    assert len(like) == 5 and first["id"] not in [hit["id"] for hit in like]
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
    assert {"scene_2.png", "twin.png"} in groups and {"scene_1.png", "smaller.png"} in groups
    text = run("duplicates", "--threshold", "0.98", "--collection", "near")[1]
    assert f"  {folder / 'smaller.png'}\n" in text
    assert text.endswith("groups of pictures at least 0.98 alike\n")


def test_reindex_has_nothing_to_do_with_the_same_model(run: Run, folder: Path) -> None:
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
    assert "score" in table and str(folder) in table
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
    assert "not indexed" in err
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
    monkeypatch.chdir(tmp_path)
    status, out, err = run("index", folder, "--local")
    assert status == 3, err
    assert out.startswith("indexed 6, updated 0, unchanged 0")
    assert "broken.png" in err and (tmp_path / "vision-rag-failed.jsonl").exists()
    hits = as_json(run("search", "--image", folder / "scene_1.png", "--local", "--json")[1])
    assert hits[0]["path"] == str(folder / "scene_1.png")


def test_local_says_who_holds_the_store(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_PATH", str(tmp_path / "held"))
    store = EdgeStore(tmp_path / "held")
    try:
        status, _, err = run("stats", "--local")
    finally:
        store.close()
    assert status == 1
    assert "is in use by the process with pid" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("search",), "give a text, --image FILE or --like ID"),
        (("search", ""), "at least 1 character"),
        (("search", "a", "--filter", "{"), "--filter is not JSON"),
        (("search", "a", "--filter", '{"all": []}'), "allowed there are key, match"),
        (("search", "a", "--weight", "1", "--weight", "2"), "weights has 2 numbers for 1"),
        (("search", "--like", "nobody"), "no picture 'nobody'"),
        (("search", "--image", "http://example.com/a.png"), "ALLOW_IMAGE_URLS"),
        (("search", "a", "--top-k", "0"), "top_k"),
        (("search", "--image", "/nowhere.png"), "/nowhere.png cannot be read"),
        (("search", "a", "--collection", "never"), "there is no collection 'never'"),
        (("search", "a", "--collection", "no/name"), "collection"),
        (("stats", "--collection", "never"), "there is no collection 'never'"),
        (("duplicates", "--collection", "never"), "there is no collection 'never'"),
        (("index", "/nowhere"), "there is no file or folder /nowhere"),
        (("index", ""), "an empty name is no file or folder"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_1(
    run: Run, arguments: tuple[str, ...], says: str
) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert says in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--dao-id", "", "at least 1 character"),
        ("--dao-id", "x" * 257, "at most 256 characters"),
        ("--dao-id", os.fsdecode(b"\xff"), "is not UTF-8"),
        ("--tag", os.fsdecode(b"\xff"), "is not UTF-8"),
    ],
)
def test_what_cannot_be_stored_is_wrong_usage(
    run: Run, capsys: pytest.CaptureFixture[str], option: str, value: str, says: str
) -> None:
    for command in ("index", "search"):
        with pytest.raises(SystemExit) as ended:
            run(command, "x", option, value)
        assert ended.value.code == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("output", ["/dev/full", "closed"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_output_that_cannot_be_written_is_said_so(
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
    full = "error: the output cannot be written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, full if output == "/dev/full" else "")


def test_an_empty_folder_is_said_so(run: Run, tmp_path: Path) -> None:
    status, _, err = run("index", tmp_path)
    assert (status, err) == (1, f"error: no pictures in {tmp_path}\n")


def test_no_service_is_said_so(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("VISION_ENCODER_URL", url)
    began = time.monotonic()
    for arguments in (("search", "a"), ("index", folder)):
        status, _, err = run(*arguments)
        assert status == 1 and len(err.splitlines()) == 1
        assert f"no vision encoder answers at {url}" in err
        assert "make serve" in err
    assert time.monotonic() - began < 10  # nothing was begun that would be worth waiting for


@pytest.mark.parametrize("number", ["0", "-1", "abc", "1.5"])
def test_a_number_of_workers_that_is_none_is_wrong_usage(
    run: Run, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("index", "x", f"--workers={number}")
    assert ended.value.code == 2
    assert f"argument --workers: '{number}' is not a whole number from 1" in capsys.readouterr().err


def test_without_standard_input_folders_are_indexed_all_the_same(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)  # as a service manager starts commands
    (folder / "broken.png").unlink()
    assert run("index", folder, "--collection", "no_stdin")[0] == 0


def test_a_picture_below_a_linked_folder_is_deleted_by_the_path_it_was_found_at(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    scene_image(6).save(tmp_path / "elsewhere" / "z.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    run("index", folder, "--collection", "linked", "--failures", tmp_path / "failed.jsonl")
    path = folder / "linked" / "z.png"
    assert run("delete", path, "--collection", "linked")[1] == "deleted 1\n"


def test_a_file_of_failures_that_cannot_be_written_is_said_so(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    status, _, err = run("index", folder, "--collection", "folder", "--failures", tmp_path)
    assert status == 1 and f"error: {tmp_path} cannot be written: Is a directory" in err


def test_a_name_that_is_not_utf_8_can_be_given(run: Run, folder: Path) -> None:
    run("index", folder / "scene_0.png", "--collection", "latin")
    status, _, err = run("delete", os.fsdecode(b"caf\xe9.png"), "--collection", "latin")
    assert status == 1 and "not indexed for dao_id default: caf\\udce9.png" in err


def test_a_bad_variable_is_said_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_COLLECTION", "no/name")
    status, _, err = run("stats")
    assert status == 1
    assert "a variable is not valid: IMAGE_SEARCH_COLLECTION: String should match" in err
    monkeypatch.delenv("IMAGE_SEARCH_COLLECTION")
    monkeypatch.setenv("VISION_ENCODER_TIMEOUT", "soon")
    status, _, err = run("stats")
    assert status == 1
    assert "a variable is not valid: VISION_ENCODER_TIMEOUT" in err


def test_help_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    commands = ("index", "search", "duplicates", "delete", "stats", "reindex")
    for command in ([], *([name] for name in commands)):
        with pytest.raises(SystemExit) as done:
            main([*command, "--help"])
        assert done.value.code == 0
        out = capsys.readouterr().out
        assert len(out) > 200 and "Exit status: 0 done" in out


def test_local_without_torch_is_said_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    status, _, err = run("stats", "--local")
    assert status == 1
    assert "torch is not installed" in err and "vision-encoder[service]" in err
