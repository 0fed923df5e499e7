"""OpenCLIP's tokenizer within bounds gives the same tokens for any text."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from bento.encoder.tokenizing import bounded

pytestmark = pytest.mark.service

LETTERS: Final = (
    string.ascii_lowercase,
    "etaoin",
    "ab",
    "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "我爱北京天安门的一是不了在人有",
    "あいうえおカキクケコ",
    "가나다라마바사",
    "अआइईउकखगघ",
    "ابتثجحخد",
    "😂😍🔥❤🇺🇸👩‍👩‍👧",
    "0123456789½٣",
    ".!?-=_*'\"<>&;#\\/()",
    string.printable,
    "ﬁéÅ\u0301\u200b\ufffd\x00\x85",
)
TEXTS: Final = (
    "",
    " \t\n ",
    "a photo of a cat",
    "It's what they've said: we'll, I'd, you're, 'em, ''s 'sun",
    "&lt;b&gt; &amp;amp; &#39;x&#39; &eacute;&copy &unknown; R&D" * 3,
    "Дві червоні кулі та зелений куб, що стоять на столі. " * 8,
    "<start_of_text>a<END_OF_TEXT>b<end_of_text> <|im_start|>",
    "ISBN 978-3-16-148410-0, 3.14159265358979 " * 5,
    "one\n\n  two\t\tthree\u00a0four\u3000five " * 30,
    "https://example.org/a/very/long/path?with=queries&and=more#" + "fragment" * 20,
    "antidisestablishmentarianism" * 30,
    "international" * 80,
    "ha" * 700,
    "-" * 3000,
    "=*" * 400,
    "😂" * 700,
    "👩‍👩‍👧" * 100,
    "我爱北京天安门" * 90,
    "ÃÂÃ©" * 90,
    "a " * 500,
    "!" * 75 + " word",
)


def random_text(chance: random.Random) -> str:
    """Return words of 1 to 350 letters, each word in one script."""
    words: list[str] = []
    for _ in range(chance.choice((1, 3, 20, 60))):
        length = chance.choice((1, 3, 7, 7, 12, 40, 350)) if len(words) < 9 else 5
        words.append("".join(chance.choices(chance.choice(LETTERS), k=length)))
    return chance.choice((" ", " ", "", ", ")).join(words)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"context_length": 12},
        {"clean": "whitespace", "additional_special_tokens": ["<end_of_mask>"]},
        {"clean": "canonicalize", "context_length": 248},
    ],
    ids=str,
)
def test_the_tokens_are_those_of_openclip(options: dict[str, Any]) -> None:
    chance = random.Random(7)
    texts = [*TEXTS, *(random_text(chance) for _ in range(150)), "x<end_of_mask>y" * 9]
    ours, theirs = bounded(SimpleTokenizer(**options)), SimpleTokenizer(**options)
    truncated = 0
    for text in texts:
        expected = theirs([text])
        assert torch.equal(ours([text]), expected), text
        truncated += bool(expected[0, -1])
    assert 30 < truncated < len(texts)


def test_a_reduction_selects_tokens_of_the_whole_text() -> None:
    text = " ".join(string.ascii_lowercase * 10)
    ours = bounded(SimpleTokenizer(reduction_mask="simple"))
    theirs = SimpleTokenizer(reduction_mask="simple")
    random.seed(3)
    tokens = ours([text])
    random.seed(3)
    assert torch.equal(tokens, theirs([text]))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[int]]:
    """Return a bounded tokenizer, and the lengths of the runs that its BPE gets."""
    given: list[int] = []
    bpe: Callable[[Any, str], str] = SimpleTokenizer.bpe

    def watch(tokenizer: Any, symbols: str) -> str:
        given.append(len(symbols))
        return bpe(tokenizer, symbols)

    monkeypatch.setattr(SimpleTokenizer, "bpe", watch)
    return bounded(SimpleTokenizer()), given


def test_only_the_beginning_of_a_long_word_is_tokenized(watched: tuple[Any, list[int]]) -> None:
    tokenizer, given = watched
    chance = random.Random(1)
    words = ["".join(chance.choices(string.ascii_lowercase, k=n)) for n in (10_000, 500, 500)]
    for text in (words[0], " ".join(words[1:])):
        given.clear()
        tokenizer([text])
        assert given == [308]


def test_a_text_is_tokenized_no_further_than_the_context(watched: tuple[Any, list[int]]) -> None:
    tokenizer, given = watched
    tokenizer(["a " * 5000])
    assert len(given) == 77


def test_the_cache_keeps_a_bounded_number_of_short_words() -> None:
    before = len(SimpleTokenizer().cache)
    tokenizer = bounded(SimpleTokenizer(), cached_words=before + 4)
    tokenizer(["b" * 64 + " " + "c" * 65 + " короткі слова"])
    assert set(list(tokenizer.cache)[before + 1 :]) == {
        "".join(tokenizer.byte_encoder[byte] for byte in word.encode())
        for word in ("короткі", "слова")
    }
    assert "b" * 64 in tokenizer.cache
    assert len(tokenizer.cache) == before + 3
    tokenizer(["two new words"])
    assert len(tokenizer.cache) == before + 4
