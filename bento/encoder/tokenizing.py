"""OpenCLIP's own tokenizer, no further than a model's context goes."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from open_clip.tokenizer import SimpleTokenizer

_CACHED_WORDS: Final = 100_000
_CACHED_BYTES: Final = 64  # of a word
# A run of letters or signs is given to the BPE by so many bytes for each token of the context, and
# by twice as many while these give too few tokens: its time grows with the square of them. Letters
# at random give a token for 2 bytes, words for 3 to 10, and the longest token has 32: eight of 😂.
_BYTES: Final = 4
# Where a run is cut, its last tokens are others than in the whole run: 4 of them at most in
# thousands of cuts at random. So many more than the context has are wanted.
_SURPLUS: Final = 16


class _BoundedCache(dict[str, str]):
    def __setitem__(self, key: str, value: str) -> None:
        if len(key) <= _CACHED_BYTES and len(self) < _CACHED_WORDS:
            super().__setitem__(key, value)


def bounded(tokenizer: Any) -> Any:
    """Bound what OpenCLIP's tokenizer remembers and what a text costs; its tokens stay the same.

    It would remember every word that it has ever seen, and tokenize a text to its end.
    """
    if isinstance(tokenizer, SimpleTokenizer):
        tokenizer.cache = _BoundedCache(tokenizer.cache)
        if tokenizer.reduction_fn is None:  # else tokens are kept from anywhere in the text
            tokenizer.encode = partial(_encode, tokenizer)
    return tokenizer


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Return what `SimpleTokenizer.encode` does, or the beginning that fills the context."""
    tokens: list[int] = []
    for run in tokenizer.pat.finditer(tokenizer.clean_fn(text)):
        symbols = "".join(tokenizer.byte_encoder[byte] for byte in run[0].encode())
        tokens += (tokenizer.encoder[token] for token in _bpe(tokenizer, symbols))
        if len(tokens) >= tokenizer.context_length:
            break
    return tokens


def _bpe(tokenizer: Any, symbols: str) -> list[str]:
    """Return the tokens of a run, a symbol for each byte, or the beginning that fills the context.

    What lies beyond the context may be wrong.
    """
    length, wanted = _BYTES * tokenizer.context_length, tokenizer.context_length + _SURPLUS
    while True:
        tokens: list[str] = tokenizer.bpe(symbols[:length]).split(" ")
        if length >= len(symbols) or len(tokens) >= wanted:
            return tokens
        length *= 2
