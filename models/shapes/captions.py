"""Captions of scenes in English and Ukrainian, complete or partial."""

from __future__ import annotations

from typing import Final

import numpy as np

from models.shapes.scenes import Scene, Thing

LANGUAGES: Final = ("en", "uk")

_EN_RELATIONS: Final = {
    "left": (("to the left of", False), ("left of", False), ("to the right of", True)),
    "above": (("above", False), ("below", True), ("under", True)),
    "inside": (("inside", False), ("in", False)),
}
_EN_ORDERS: Final = {"left": "from left to right", "above": "from top to bottom"}
_EN_NUMBERS: Final = {2: "two", 3: "three", 4: "four", 5: "five"}
_EN_PLURALS: Final = {"cross": "crosses"}

# gender; singular: nominative, genitive, instrumental; plural: nominative, genitive
_UK_SHAPES: Final = {
    "circle": ("m", "круг", "круга", "кругом", "круги", "кругів"),
    "square": ("m", "квадрат", "квадрата", "квадратом", "квадрати", "квадратів"),
    "triangle": ("m", "трикутник", "трикутника", "трикутником", "трикутники", "трикутників"),
    "star": ("f", "зірка", "зірки", "зіркою", "зірки", "зірок"),
    "heart": ("n", "серце", "серця", "серцем", "серця", "сердець"),
    "cross": ("m", "хрест", "хреста", "хрестом", "хрести", "хрестів"),
    "ring": ("n", "кільце", "кільця", "кільцем", "кільця", "кілець"),
    "diamond": ("m", "ромб", "ромба", "ромбом", "ромби", "ромбів"),
}
_UK_CASES: Final = {"nom": 1, "gen": 2, "ins": 3, "nom_pl": 4, "gen_pl": 5}
_UK_STEMS: Final = {
    "small": "маленьк",
    "large": "велик",
    "red": "червон",
    "orange": "помаранчев",
    "yellow": "жовт",
    "green": "зелен",
    "blue": "син",
    "purple": "фіолетов",
    "pink": "рожев",
    "black": "чорн",
    "white": "біл",
    "gray": "сір",
}
_UK_ENDINGS: Final = {  # for hard stems, and for soft stems
    ("m", "nom"): ("ий", "ій"),
    ("f", "nom"): ("а", "я"),
    ("n", "nom"): ("е", "є"),
    ("m", "gen"): ("ого", "ього"),
    ("f", "gen"): ("ої", "ьої"),
    ("n", "gen"): ("ого", "ього"),
    ("m", "ins"): ("им", "ім"),
    ("f", "ins"): ("ою", "ьою"),
    ("n", "ins"): ("им", "ім"),
    ("n", "loc"): ("ому", "ьому"),
    ("", "nom_pl"): ("і", "і"),
    ("", "gen_pl"): ("их", "іх"),
}
_UK_SOFT: Final = frozenset({"blue"})
_UK_RELATIONS: Final = {
    "left": (
        ("ліворуч від", "gen", False),
        ("зліва від", "gen", False),
        ("праворуч від", "gen", True),
    ),
    "above": (("над", "ins", False), ("під", "ins", True)),
    "inside": (("всередині", "gen", False),),
}
_UK_ORDERS: Final = {"left": "зліва направо", "above": "зверху вниз"}
_UK_NUMBERS: Final = {2: "два", 3: "три", 4: "чотири", 5: "п'ять"}


def caption(
    scene: Scene,
    language: str,
    rng: np.random.Generator,
    *,
    sizes: bool = True,
    background: bool = True,
) -> str:
    """Return a caption of a scene, whose wording varies with `rng`.

    If `sizes` or `background` is false, the caption omits them, as search queries often do.

    Raises `ValueError` for a language that is not in `LANGUAGES`.
    """
    if language == "en":
        return _english(scene, rng, sizes, background)
    if language == "uk":
        return _ukrainian(scene, rng, sizes, background)
    raise ValueError(f"unknown language {language!r}; allowed: {', '.join(LANGUAGES)}")


def _english(scene: Scene, rng: np.random.Generator, sizes: bool, background: bool) -> str:
    articles = rng.random() < 0.7

    def name(thing: Thing, plural: bool = False) -> str:
        noun = thing.shape
        if plural:
            noun = _EN_PLURALS.get(noun, noun + "s")
        words = ([thing.size] if sizes else []) + [thing.colour, noun]
        if articles and not plural:
            words.insert(0, "an" if words[0][0] in "aeiou" else "a")
        return " ".join(words)

    first = scene.things[0]
    if scene.kind == "single":
        text = name(first)
    elif scene.kind == "count":
        number = _EN_NUMBERS[scene.count] if rng.random() < 0.8 else str(scene.count)
        text = f"{number} {name(first, plural=True)}"
    elif scene.kind == "pair":
        options = _EN_RELATIONS[scene.relation]
        words, swapped = options[int(rng.integers(len(options)))]
        a, b = scene.things[::-1] if swapped else scene.things
        text = f"{name(a)} {words} {name(b)}"
    else:
        a, b, c = scene.things
        text = f"{name(a)}, {name(b)} and {name(c)} {_EN_ORDERS[scene.relation]}"
    if background:
        text += f" on {'a ' if articles else ''}{scene.background} background"
    return text


def _ukrainian(scene: Scene, rng: np.random.Generator, sizes: bool, background: bool) -> str:
    def adjective(word: str, gender: str, case: str) -> str:
        return _UK_STEMS[word] + _UK_ENDINGS[gender, case][word in _UK_SOFT]

    def name(thing: Thing, case: str = "nom") -> str:
        forms = _UK_SHAPES[thing.shape]
        gender = "" if case.endswith("_pl") else forms[0]
        words = [thing.size, thing.colour] if sizes else [thing.colour]
        return " ".join(
            [*(adjective(word, gender, case) for word in words), forms[_UK_CASES[case]]]
        )

    first = scene.things[0]
    if scene.kind == "single":
        text = name(first)
    elif scene.kind == "count":
        number = _UK_NUMBERS[scene.count]
        if scene.count == 2 and _UK_SHAPES[first.shape][0] == "f":
            number = "дві"
        if rng.random() < 0.2:
            number = str(scene.count)
        text = f"{number} {name(first, 'gen_pl' if scene.count > 4 else 'nom_pl')}"
    elif scene.kind == "pair":
        options = _UK_RELATIONS[scene.relation]
        words, case, swapped = options[int(rng.integers(len(options)))]
        a, b = scene.things[::-1] if swapped else scene.things
        text = f"{name(a)} {words} {name(b, case)}"
    else:
        a, b, c = scene.things
        text = f"{name(a)}, {name(b)} та {name(c)} {_UK_ORDERS[scene.relation]}"
    if background:
        text += f" на {adjective(scene.background, 'n', 'loc')} тлі"
    return text
