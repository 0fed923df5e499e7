"""Malformed pictures and decompression bombs cost little memory and time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bento import Encoder
from tests.data.make_malformed import FOLDER, corpus
from tests.support.paths import ROOT
from tests.support.pictures import file_bytes, scene_image
from tests.support.serving import Server

pytestmark = pytest.mark.service

MAX_BYTES = 300_000_000
MAX_SECONDS = 2.0
ROTATED = Image.Exif()
ROTATED[0x0112] = 6


@pytest.fixture(scope="module")
def malformed() -> dict[str, tuple[bytes, int]]:
    return corpus()


def costs(files: Iterable[Path]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.support.measuring", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_script_writes_the_files_of_the_corpus(
    malformed: dict[str, tuple[bytes, int]],
) -> None:
    kept = {file.name: file.read_bytes() for file in FOLDER.iterdir()}
    assert kept == {name: data for name, (data, _) in malformed.items()}
    assert sum(map(len, kept.values())) < 800_000


def test_a_malformed_picture_costs_little_memory_and_time(
    malformed: dict[str, tuple[bytes, int]],
) -> None:
    found = costs(FOLDER / name for name in malformed)
    assert {c["name"]: c["status"] for c in found} == {n: s for n, (_, s) in malformed.items()}
    assert [c for c in found if c["bytes"] > MAX_BYTES or c["seconds"] > MAX_SECONDS] == []


@pytest.mark.parametrize(
    ("mode", "side", "format", "options"),
    [
        # the most expensive picture of each format, just below its limit
        ("CMYK", 4690, "JPEG", {"progressive": True, "subsampling": 0, "exif": ROTATED.tobytes()}),
        ("CMYK", 5744, "JPEG", {"subsampling": 2, "exif": ROTATED.tobytes()}),
        ("RGBA", 5744, "PNG", {"exif": ROTATED.tobytes(), "compress_level": 1}),
        ("RGB", 4060, "WEBP", {"method": 0, "exif": ROTATED.tobytes()}),
        ("F", 4690, "TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_the_largest_allowed_pictures_stay_within_the_same_bounds(
    tmp_path: Path, mode: str, side: int, format: str, options: dict[str, Any]
) -> None:
    file = tmp_path / "picture"
    file.write_bytes(file_bytes(Image.new(mode, (side, side)), format, **options))
    (found,) = costs([file])
    assert found["status"] == 200, found
    assert found["bytes"] <= MAX_BYTES, found
    assert found["seconds"] <= MAX_SECONDS, found


def test_the_service_answers_malformed_pictures_and_their_neighbours(
    server: Server, encoder: Encoder, malformed: dict[str, tuple[bytes, int]]
) -> None:
    good = scene_image(1)
    with server.client() as http:
        for name, (data, status) in malformed.items():
            answer = http.post("/embed/image/upload", files={"file": (name, data)})
            assert answer.status_code == status, (name, answer.text)
        some = [both for name, both in malformed.items() if not name.startswith("bomb")]
        files = [file_bytes(good), *(data for data, _ in some), file_bytes(good)]
        together = http.post("/embed/images", files=[("files", data) for data in files])
    assert together.status_code == 200, together.text
    rows = together.json()["embeddings"]
    statuses = [200, *(status for _, status in some), 200]
    assert [row is not None for row in rows] == [status == 200 for status in statuses]
    for row in (rows[0], rows[-1]):
        np.testing.assert_allclose(row, encoder.encode_images([good])[0], atol=1e-5)
