"""Faster attention layers, which compute only the tokens that an embedding needs."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


class SelfAttention(nn.Module):
    """Computes the same as `nn.MultiheadAttention` if query, key and value are the same.

    It uses the weights of the original. torch first transposes the input to (length, n, width), and
    then projects it with a batched product over copies of the weights. On (n, length, width), the
    projection is a plain matrix product.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj = nn.Linear(1, 1, device="meta")
        self.in_proj.weight = attention.in_proj_weight
        self.in_proj.bias = attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.num_heads = attention.num_heads

    def forward(
        self,
        query: torch.Tensor,  # (n, length, width)
        key: torch.Tensor,  # noqa: ARG002 - the same as `query`; OpenCLIP passes all three
        value: torch.Tensor,  # noqa: ARG002
        need_weights: bool = False,  # noqa: ARG002 - OpenCLIP passes it, always False
        attn_mask: torch.Tensor | None = None,  # (length, length) or (n * heads, length, length)
    ) -> tuple[torch.Tensor, None]:
        n, length, width = query.shape
        q, k, v = self.in_proj(query).view(n, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.view(n, self.num_heads, length, length)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(attended.transpose(1, 2).reshape(n, length, width)), None


class TokenAttention(nn.Module):
    """Computes the output of a `SelfAttention`, with its weights, for one token of each input."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        width = attention.out_proj.in_features
        self.q_proj = _rows(attention.in_proj, slice(width))
        self.kv_proj = _rows(attention.in_proj, slice(width, None))
        self.out_proj = attention.out_proj
        self.num_heads = attention.num_heads

    def forward(
        self,
        token: torch.Tensor,  # (n, 1, width)
        tokens: torch.Tensor,  # (n, length, width)
        attn_mask: torch.Tensor | None,  # (n, 1, 1, length)
    ) -> torch.Tensor:
        n, length, width = tokens.shape
        q = self.q_proj(token).view(n, 1, self.num_heads, -1).transpose(1, 2)
        k, v = self.kv_proj(tokens).view(n, length, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        projected: torch.Tensor = self.out_proj(attended.reshape(n, 1, width))
        return projected


class LastBlock(nn.Module):
    """Computes the last block of a tower for the token at the pooling position only.

    Of the other tokens it computes the keys and values.
    """

    def __init__(self, block: ResidualAttentionBlock) -> None:
        super().__init__()
        self.attn = TokenAttention(block.attn)
        self.mlp = block.mlp
        self.ln_1, self.ls_1 = block.ln_1, block.ls_1
        self.ln_2, self.ls_2 = block.ln_2, block.ls_2

    def forward(
        self,
        x: torch.Tensor,  # (n, length, width)
        attn_mask: torch.Tensor | None = None,  # (length, length)
        at: torch.Tensor | None = None,  # the pooling positions, int64 (n,); by default 0
    ) -> torch.Tensor:
        """Return the output of the block at the pooling positions, (n, 1, width)."""
        token = x[:, :1]
        if at is not None:
            token = x[torch.arange(len(x), device=x.device), at].unsqueeze(1)
        if attn_mask is not None:
            attn_mask = attn_mask[at, None, None].to(x.dtype)
        token = token + self.ls_1(self.attn(self.ln_1(token), self.ln_1(x), attn_mask))
        read: torch.Tensor = token + self.ls_2(self.mlp(self.ln_2(token)))
        return read


def _rows(layer: nn.Linear, rows: slice) -> nn.Linear:
    """Return a layer with some outputs of another layer, whose weights it shares."""
    part = nn.Linear(1, 1, device="meta")
    part.weight = nn.Parameter(layer.weight[rows], requires_grad=False)
    part.bias = nn.Parameter(layer.bias[rows], requires_grad=False)
    return part


def replace_attention(module: Any) -> None:
    """Replace the attention of a tower's self-attention blocks by `SelfAttention`."""
    for block in module.modules():
        if isinstance(block, ResidualAttentionBlock) and not hasattr(block, "ln_1_kv"):
            attention = block.attn
            if isinstance(attention, nn.MultiheadAttention) and attention.batch_first:
                block.attn = SelfAttention(attention)


def read_one_token(transformer: Any) -> None:
    """Replace the last block of a transformer by a `LastBlock`, if it uses `SelfAttention`."""
    blocks = transformer.resblocks
    # keep the first block, because OpenCLIP reads the dtype from it
    if len(blocks) > 1 and isinstance(getattr(blocks[-1], "attn", None), SelfAttention):
        blocks[-1] = LastBlock(blocks[-1])


def reads_first_token(visual: Any) -> bool:
    """Say whether an image tower pools at the first token of its last block."""
    return (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
    )
