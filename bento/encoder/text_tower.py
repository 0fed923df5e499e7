"""The text tower of an OpenCLIP model: from texts to embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from open_clip import CLIP
from open_clip.transformer import TextTransformer, text_global_pool
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from bento.encoder.embeddings import Embeddings
from bento.encoder.kernels.attention import LastBlock, read_one_token
from bento.encoder.kernels.graphs import sizes
from bento.encoder.tokenizing import bounded
from bento.encoder.tower import graphs_on, stream_on

# The fixed cost of a forward pass, in tokens. On 2 cores of an x86-64 CPU, the text tower of
# ViT-B-32 in float32 takes about 18 ms + 0.45 ms per token. On a GPU, a batch of 32 queries takes
# hardly longer than one query.
_FORWARD_TOKENS: Final = {"cpu": 40, "cuda": 100_000}
_LENGTH_STEP: Final = 16  # with CUDA graphs, texts are padded to a multiple of this


class TextTower:
    """Turns texts into embeddings. A prepared text is its token ids, int64 (length,).

    If attention is causal and the pooling position is the end-of-text token, later tokens have no
    influence on the embedding. `cuts` is true for such a tower: a prepared text ends with that
    token, and a batch runs in groups of similar length. Other towers get texts that are padded to
    the context length.
    """

    def __init__(self, model: Any, tokenizer: Any, device: str, max_batch_size: int) -> None:
        self.context_length = int(getattr(tokenizer, "context_length", None) or 77)
        self.cuts = _is_cuttable(_text_parts(model))
        self._tokenizer = bounded(tokenizer)
        empty = tokenizer([""])[0]
        self._padding = empty[-1]
        # SigLIP pads with the end-of-text token
        self._padding_ends = bool((empty == empty[-1]).all())
        self._device = device
        self._stream = stream_on(device, priority=-1)  # texts come before images
        self._forward_tokens = _FORWARD_TOKENS[device.partition(":")[0]]
        self._sizes = sizes(max_batch_size)
        if self.cuts:
            read_one_token(_text_parts(model).transformer)
        self.use(model, "float32")

    def use(self, module: Any, dtype: str) -> None:
        self.module = module
        self.dtype = dtype
        self.graphs = graphs_on(self._device, self.forward, self._sizes)

    def prepare(self, text: str) -> torch.Tensor:
        """Return the token ids of a text, truncated at the context length."""
        tokens: torch.Tensor = self._tokenizer([text])[0]
        return tokens[: self._ends(tokens) + 1] if self.cuts else tokens

    def count_tokens(self, tokens: torch.Tensor) -> int:
        """Return how many tokens a prepared text has, without padding."""
        if self.cuts:
            return len(tokens)
        seen = (tokens != self._padding).nonzero()
        last = int(seen[-1]) + 1 if len(seen) else 0
        return min(last + self._padding_ends, len(tokens))

    def probe(self) -> list[torch.Tensor]:
        return [self.prepare("a photo of a cat" * n) for n in (1, 1, 1, 1, 2, 2, 3, 4)]

    def warm_batches(self) -> Iterator[list[torch.Tensor]]:
        if self.graphs is None:
            yield self.probe()
            return
        lengths = {self._padded(n) for n in range(1, self.context_length + 1)}
        for length in sorted(lengths, reverse=True):
            for size in reversed(self._sizes):  # smaller batches reuse the memory of the largest
                yield [torch.ones(length, dtype=torch.int64)] * size

    def size(self, item: torch.Tensor) -> int:
        return len(item)  # tokens

    def embed(self, items: Sequence[torch.Tensor]) -> Embeddings:
        groups = group_by_length([len(item) for item in items], self._forward_tokens)
        parts = [self._embed_group([items[i] for i in group]) for group in groups]
        embeddings = np.empty((len(items), parts[0].shape[1]), np.float32)
        for group, part in zip(groups, parts, strict=True):
            embeddings[group] = part
        return embeddings

    def _embed_group(self, items: Sequence[torch.Tensor]) -> Embeddings:
        tokens = pad_sequence(list(items), batch_first=True)  # (n, length)
        with torch.inference_mode(), self._stream():
            if self.graphs is None:
                embeddings = self.forward(tokens.to(self._device))
            else:
                length = tokens.shape[1]
                embeddings = self.graphs(pad(tokens, (0, self._padded(length) - length)))
            return np.asarray(embeddings.cpu().numpy())

    def _padded(self, length: int) -> int:
        """Return the length to which texts are padded for CUDA graphs, which need few shapes."""
        if not self.cuts:
            return self.context_length
        return min(-(-length // _LENGTH_STEP) * _LENGTH_STEP, self.context_length)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, float32 (n, dim), of tokens (n, length) on the device."""
        if self.cuts:
            embeddings: torch.Tensor = self._cut_forward(tokens)
        else:
            embeddings = self.module.encode_text(tokens, normalize=False)
        return embeddings.float()

    def _cut_forward(self, tokens: torch.Tensor) -> Any:
        """Compute `encode_text` with the attention mask and positions of these tokens' length."""
        parts = _text_parts(self.module)
        length = tokens.shape[1]
        dtype = parts.transformer.get_cast_dtype()
        x = parts.token_embedding(tokens).to(dtype) + parts.positional_embedding[:length].to(dtype)
        mask, transformer = parts.attn_mask[:length, :length], parts.transformer
        if isinstance(transformer.resblocks[-1], LastBlock):
            for block in transformer.resblocks[:-1]:
                x = block(x, attn_mask=mask)
            x = transformer.resblocks[-1](x, mask, at=self._ends(tokens))[:, 0]
        else:
            x = text_global_pool(transformer(x, attn_mask=mask), tokens, *_pooling(parts))
        x = parts.ln_final(x)  # (n, width)
        projection = parts.text_projection
        if isinstance(projection, torch.nn.Linear):
            x = projection(x)
        elif projection is not None:
            x = x @ projection
        return x  # (n, dim)

    def _ends(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the pooling positions, int64 (...), of texts (..., length)."""
        pool_type, eos_id = _pooling(_text_parts(self.module))
        at_end = tokens if pool_type == "argmax" else torch.eq(tokens, eos_id or 0).int()
        return at_end.argmax(-1)


def _text_parts(model: Any) -> Any:
    """Return the module that holds the parts of the text transformer."""
    return model if isinstance(model, CLIP) else model.text


def _pooling(parts: Any) -> tuple[str, int | None]:
    """Return the pooling type of a text transformer, and the id of its end-of-text token."""
    if isinstance(parts, CLIP):
        return parts.text_pool_type, getattr(parts, "text_eos_id", None)
    return parts.pool_type, getattr(parts, "eos_id", None)


def _is_cuttable(parts: Any) -> bool:
    """Say whether the tokens after the end-of-text token have no influence on the embedding."""
    if not isinstance(parts, CLIP | TextTransformer) or parts.attn_mask is None:
        return False
    # CoCa pools at a class token after the end-of-text token
    if isinstance(parts, TextTransformer) and (parts.cls_emb is not None or parts.use_pad_mask):
        return False
    pool_type, eos_id = _pooling(parts)
    # 0 is also the padding
    return pool_type == "argmax" or (pool_type == "eos" and bool(eos_id))


def group_by_length(lengths: Sequence[int], forward_tokens: int) -> list[list[int]]:
    """Return the indices of texts in groups of similar length.

    A new group starts if padding would cost more tokens than another forward pass, which costs as
    much as `forward_tokens`.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups = [[order[0]]]
    for i in order[1:]:
        group = groups[-1]
        if (lengths[i] - lengths[group[-1]]) * len(group) > forward_tokens:
            groups.append([i])
        else:
            group.append(i)
    return groups
