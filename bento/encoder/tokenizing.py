"""Bound the time and memory of OpenCLIP's tokenizer."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from open_clip.tokenizer import SimpleTokenizer

_CACHED_WORDS: Final = 100_000
_CACHED_BYTES: Final = 64  # longer words are not cached
# The time of BPE grows with the square of the length of a run of letters or signs. So BPE first
# gets this many bytes of a run per token of the context, and then twice as many until there are
# enough tokens. Random letters have 2 bytes per token, words 3 to 10, the longest token (eight 😂)
# 32.
_BYTES: Final = 4
# The last tokens of the beginning of a run may differ from those of the whole run: in thousands of
# random trials, at most 4 did. So BPE must return this many tokens more than the context length.
_SURPLUS: Final = 16


class _BoundedCache(dict[str, str]):
    def __init__(self, words: dict[str, str], most: int) -> None:
        super().__init__(words)
        self._most = most

    def __setitem__(self, key: str, value: str) -> None:
        if len(key) <= _CACHED_BYTES and len(self) < self._most:
            super().__setitem__(key, value)


def bounded(tokenizer: Any, *, cached_words: int = _CACHED_WORDS) -> Any:
    """Bound the cache of OpenCLIP's tokenizer and its time for a text. The tokens do not change.

    Without this, OpenCLIP caches every word that it ever sees, and tokenizes each text to its end.
    Tokenizers of other classes are returned as they are.
    """
    if isinstance(tokenizer, SimpleTokenizer):
        tokenizer.cache = _BoundedCache(tokenizer.cache, cached_words)
        if tokenizer.reduction_fn is None:  # a reduction selects tokens of the whole text
            tokenizer.encode = partial(_encode, tokenizer)
    return tokenizer


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of `SimpleTokenizer.encode`, or at least those that fill the context."""
    tokens: list[int] = []
    for run in tokenizer.pat.finditer(tokenizer.clean_fn(text)):
        symbols = "".join(tokenizer.byte_encoder[byte] for byte in run[0].encode())
        tokens += (tokenizer.encoder[token] for token in _bpe(tokenizer, symbols))
        if len(tokens) >= tokenizer.context_length:
            break
    return tokens


def _bpe(tokenizer: Any, symbols: str) -> list[str]:
    """Return the tokens of a run, or at least those that fill the context.

    `symbols` has one symbol per byte of the run. Tokens beyond the context length may be wrong.
    """
    length, wanted = _BYTES * tokenizer.context_length, tokenizer.context_length + _SURPLUS
    while True:
        tokens: list[str] = tokenizer.bpe(symbols[:length]).split(" ")
        if length >= len(symbols) or len(tokens) >= wanted:
            return tokens
        length *= 2
