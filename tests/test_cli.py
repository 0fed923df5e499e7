"""The vision-rag command, against a served service and in process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag.cli import main
from rag.edge import EdgeStore

from .conftest import BUNDLED, Server, free_port, scene_image

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command against the served service; return its status, output and errors."""
    monkeypatch.setenv("VISION_ENCODER_URL", server.url)
    monkeypatch.setenv("COLUMNS", "300")

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


def test_a_folder_is_indexed_once_and_what_is_no_picture_is_told(run: Run, folder: Path) -> None:
    status, out, err = run("index", folder, "--collection", "folder", "--dao-id", "me")
    assert status == 0
    assert out.strip() == "indexed 6, unchanged 0, skipped 2 (collection folder, dao_id me)"
    assert f"skipped {folder / 'notes.txt'}: not a picture" in err
    assert f"skipped {folder / 'broken.png'}: the PNG image is broken or truncated" in err
    assert ".hidden.png" not in err
    again = run("index", folder, "--collection", "folder", "--dao-id", "me")[1]
    assert again.startswith("indexed 0, unchanged 6, skipped 2")
    stats = as_json(run("stats", "--collection", "folder", "--json")[1])
    assert stats == {
        "collection": "folder",
        "points": 6,
        "model": "local-dir:shapes/local",
        "dimension": 128,
    }


def test_pictures_are_found_by_text_and_by_image(run: Run, folder: Path) -> None:
    run("index", folder, "--collection", "search")
    query = folder / "scene_3.png"
    status, out, _ = run("search", "--image", query, "--collection", "search", "--json")
    hits = as_json(out)
    assert status == 0
    assert [set(hit) for hit in hits] == [{"id", "score", "path", "payload"}] * 5
    assert hits[0]["path"] == hits[0]["id"] == str(query)
    assert hits[0]["payload"]["title"] == "scene 3"
    text = run("search", "a circle", "--collection", "search", "--top-k", "2", "--json")[1]
    assert len(as_json(text)) == 2
    table = run("search", "a circle", "--collection", "search")[1]
    assert "score" in table and str(folder) in table
    nobody = run("search", "a circle", "--collection", "search", "--dao-id", "nobody")
    assert nobody[:2] == (0, "nothing found\n")


def test_pictures_are_deleted_by_their_path(run: Run, folder: Path) -> None:
    run("index", folder / "scene_0.png", folder / "scene_1.png", "--collection", "delete")
    assert run("delete", folder / "scene_0.png", "--collection", "delete")[1] == "deleted 1\n"
    status, out, err = run("delete", folder / "scene_0.png", "--collection", "delete")
    assert (status, out) == (1, "deleted 0\n")
    assert "not indexed" in err
    assert as_json(run("stats", "--collection", "delete", "--json")[1])["points"] == 1
    assert "points" in run("stats", "--collection", "delete")[1]


def test_local_needs_no_service(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_ENCODER_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("MODEL_NAME", BUNDLED)
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("QDRANT_PATH", str(tmp_path / "local"))
    status, out, err = run("index", folder, "--local")
    assert status == 0, err
    assert out.startswith("indexed 6, unchanged 0, skipped 2")
    assert "broken.png" in err and "notes.txt" in err
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
        (("search",), "give a text or --image FILE"),
        (("search", "a", "--image", "b.png"), "give a text or --image FILE"),
        (("search", ""), "at least 1 character"),
        (("search", "a", "--top-k", "0"), "top_k"),
        (("search", "--image", "/nowhere.png"), "cannot read /nowhere.png"),
        (("search", "a", "--collection", "never"), "there is no collection 'never'"),
        (("search", "a", "--collection", "no/name"), "collection"),
        (("stats", "--collection", "never"), "there is no collection 'never'"),
        (("index", "/nowhere"), "there is no file or folder /nowhere"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_1(
    run: Run, arguments: tuple[str, ...], says: str
) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_an_empty_folder_is_said_so(run: Run, tmp_path: Path) -> None:
    status, _, err = run("index", tmp_path)
    assert status == 1 and "no files" in err


def test_no_service_is_said_so(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("VISION_ENCODER_URL", url)
    for arguments in (("search", "a"), ("index", folder)):
        status, _, err = run(*arguments)
        assert status == 1
        assert f"no vision encoder answers at {url}" in err
        assert "make serve" in err


def test_a_bad_variable_is_said_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_COLLECTION", "no/name")
    status, _, err = run("stats")
    assert status == 1
    assert "IMAGE_SEARCH_COLLECTION" in err


def test_help_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["index"], ["search"], ["delete"], ["stats"]):
        with pytest.raises(SystemExit) as done:
            main([*command, "--help"])
        assert done.value.code == 0
        assert len(capsys.readouterr().out) > 200


def test_local_without_torch_is_said_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    status, _, err = run("stats", "--local")
    assert status == 1
    assert "torch is not installed" in err and "vision-encoder[service]" in err
