"""Self-attention on contiguous memory, in place of torch's, which copies weights on the way."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


class SelfAttention(nn.Module):
    """Computes what `nn.MultiheadAttention` does for one input, with its weights.

    torch's transposes its input to (length, batch, width) first; the projection of that is no
    plain matrix product any more, but a batched one over copies of the weights. The product of
    the (batch, length, width) input is one.
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
        query: torch.Tensor,  # (n, length, width), and key and value are the same
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,  # (length, length) or (n * heads, length, length)
    ) -> tuple[torch.Tensor, None]:
        n, length, width = query.shape
        q, k, v = self.in_proj(query).view(n, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.view(n, self.num_heads, length, length)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(attended.transpose(1, 2).reshape(n, length, width)), None


def replace_attention(module: Any) -> None:
    """Let the self-attention blocks of a tower use `SelfAttention`; others stay as they are."""
    for block in module.modules():
        if isinstance(block, ResidualAttentionBlock) and not hasattr(block, "ln_1_kv"):
            attention = block.attn
            if isinstance(attention, nn.MultiheadAttention) and attention.batch_first:
                block.attn = SelfAttention(attention)
