"""The scenes of the bundled model: their captions, their codes and their pictures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from models.shapes import MODEL_DIR
from models.shapes.captions import caption
from models.shapes.samples import draw_samples
from models.shapes.scenes import ANY, Scene, Thing, caption_code, draw_scene, sample_scene

RED_CIRCLE = Thing("circle", "red", "large")
BLUE_STAR = Thing("star", "blue", "small")


class FirstChoice:
    """A random generator that always takes the first wording."""

    def random(self) -> float:
        return 0.0

    def integers(self, *arguments: int) -> int:
        return 0


@pytest.mark.parametrize(
    ("scene", "english", "ukrainian"),
    [
        (
            Scene("single", "yellow", (RED_CIRCLE,)),
            "a large red circle on a yellow background",
            "великий червоний круг на жовтому тлі",
        ),
        (
            Scene("pair", "gray", (BLUE_STAR, RED_CIRCLE), "left"),
            "a small blue star to the left of a large red circle on a gray background",
            "маленька синя зірка ліворуч від великого червоного круга на сірому тлі",
        ),
        (
            Scene("pair", "blue", (RED_CIRCLE, Thing("star", "black", "small")), "above"),
            "a large red circle above a small black star on a blue background",
            "великий червоний круг над маленькою чорною зіркою на синьому тлі",
        ),
        (
            Scene("pair", "white", (BLUE_STAR, Thing("heart", "pink", "large")), "inside"),
            "a small blue star inside a large pink heart on a white background",
            "маленька синя зірка всередині великого рожевого серця на білому тлі",
        ),
        (
            Scene("triple", "black", (RED_CIRCLE, BLUE_STAR, RED_CIRCLE), "left"),
            "a large red circle, a small blue star and a large red circle "
            "from left to right on a black background",
            "великий червоний круг, маленька синя зірка та великий червоний круг "
            "зліва направо на чорному тлі",
        ),
    ],
)
def test_captions_describe_the_scene(scene: Scene, english: str, ukrainian: str) -> None:
    assert caption(scene, "en", FirstChoice()) == english  # type: ignore[arg-type]
    assert caption(scene, "uk", FirstChoice()) == ukrainian  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "thing", "ukrainian"),
    [
        (2, BLUE_STAR, "дві маленькі сині зірки"),
        (2, RED_CIRCLE, "два великі червоні круги"),
        (4, Thing("ring", "blue", "small"), "чотири маленькі сині кільця"),
        (5, BLUE_STAR, "п'ять маленьких синіх зірок"),
        (5, Thing("heart", "white", "large"), "п'ять великих білих сердець"),
    ],
)
def test_ukrainian_numbers_take_the_right_case(count: int, thing: Thing, ukrainian: str) -> None:
    class Words(FirstChoice):
        def random(self) -> float:
            return 0.5

    scene = Scene("count", "black", (thing,), count=count)
    text = caption(scene, "uk", Words(), background=False)  # type: ignore[arg-type]
    assert text == ukrainian


def test_the_code_of_a_caption_has_any_for_omitted_attributes() -> None:
    scene = Scene("pair", "gray", (BLUE_STAR, RED_CIRCLE), "left")
    rng = np.random.default_rng(0)
    text = caption(scene, "en", rng, sizes=False, background=False)
    assert not re.search("small|large|background", text)
    code = caption_code(scene, sizes=False, background=False)
    assert [i for i, value in enumerate(code) if value == ANY] == [2, 6, 9]
    assert all(a == b for a, b in zip(code, scene.code(), strict=True) if a != ANY)


def test_scenes_for_training_and_held_out_scenes_differ() -> None:
    rng = np.random.default_rng(0)
    trained = {sample_scene(rng) for _ in range(500)}
    held_out = {sample_scene(rng, held_out=True) for _ in range(500)}
    assert not trained & held_out


def test_the_same_seed_draws_the_same_picture() -> None:
    scene = Scene("single", "yellow", (RED_CIRCLE,))
    a, b, other = (draw_scene(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert a.tobytes() == b.tobytes() != other.tobytes()
    centre = np.argwhere(np.asarray(a)[:, :, 1] < 100).mean(0)  # red has less green than yellow
    r, g, b_ = np.asarray(a)[int(centre[0]), int(centre[1])]
    assert r > 200
    assert g < 60
    assert b_ < 60


def test_the_model_fits_into_ten_megabytes() -> None:
    files = [MODEL_DIR / "open_clip_config.json", MODEL_DIR / "open_clip_model.safetensors"]
    assert sum(file.stat().st_size for file in files) <= 10_000_000


def test_samples_are_different_scenes_named_by_their_captions(tmp_path: Path) -> None:
    paths = draw_samples(tmp_path, 40)
    assert len({path.name for path in paths}) == 40
    before = {path: path.read_bytes() for path in paths}
    assert draw_samples(tmp_path, 40) == paths
    assert {path: path.read_bytes() for path in paths} == before
    assert "large_red_circle_on_yellow_background.png" in {path.name for path in paths}
